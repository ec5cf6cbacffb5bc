"""Networks of users' own through every command: Linen and NNX, with norms and dropout or without."""

import json
import shutil
from functools import partial

import pytest
from helpers import TESTS
from helpers.reference_round import assert_close
from helpers.runs import assert_same_state, config_of, opened, train_rounds
from helpers.tiny import flat

from loft_jax import load_checkpoint
from loft_jax.errors import UserError
from loft_jax.models.registry import _DECLARED
from loft_jax.models.resnet import ResNet
from loft_jax.report.__main__ import run as write_report
from loft_jax.retrain.__main__ import main as retrain_command
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.tickets.__main__ import main as tickets_command
from loft_jax.train.__main__ import run
from loft_jax.train.experiment import Experiment
from loft_jax.train.overview import print_setup

FILE = f"{TESTS}/helpers/own_networks.py"


def settings(name, file=FILE, **changes):
    return config_of(**({"model": {"name": f"{file}:{name}", "width": None}} | changes))


def command(main, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
    main()


@pytest.mark.parametrize("sync", ["psum", pytest.param("exchange", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", ["Listed", "Plain", pytest.param("Small", marks=pytest.mark.full)])
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(name, sync, tmp_path):
    config = settings(name, loft={"sync": sync})
    run(config, opened(tmp_path / "whole", config))
    train_rounds(tmp_path / "resumed", config, 3)
    run(config, opened(tmp_path / "resumed", config))
    one, other = (load_checkpoint(tmp_path / path)["variables"] for path in ("whole", "resumed"))
    assert_same_state(one, other)
    assert flat(one)


@pytest.mark.parametrize("name", ["Listed", pytest.param("Plain", marks=pytest.mark.full)])
def test_from_training_to_a_retrained_ticket_and_a_report(name, tmp_path, monkeypatch, capsys):
    file = tmp_path / "nets.py"
    shutil.copy(FILE, file)
    path, config = tmp_path / "run", settings(name, file)
    run(config, opened(path, config))
    said = capsys.readouterr().out
    assert "found by tracing" in said
    command(tickets_command, monkeypatch, path, "--ratios", "0.5", "--export")
    ticket = json.loads((path / "tickets/r6-group-l2-0.5/ticket.json").read_text())
    assert sorted(ticket["kept"]) == (["convs/0", "convs/1", "hidden"] if name == "Listed" else ["Dense_0", "Dense_2"])
    modes = ("rewind", "reinit", "random", "finetune")
    command(retrain_command, monkeypatch, path, "--ticket", "r6-group-l2-0.5", "--mode", *modes, "--untimed")
    assert len(list(path.glob("retrain/*/*/seed0/summary.json"))) == len(modes)
    file.unlink()
    write_report([RunDirectory(path)], [RunDirectory(path).read_config()], tmp_path / "report")
    assert (tmp_path / "report/report.html").stat().st_size > 10_000
    with pytest.raises(UserError, match=r"nets\.py:.*no such file"):
        command(tickets_command, monkeypatch, path)


def test_a_network_in_which_nothing_can_be_split_is_refused_with_the_reasons(tmp_path):
    config = settings("Summed")
    with pytest.raises(
        UserError, match=r"loft.workers=4: nothing of the network can be split \(Dense_0: reduce_sum at"
    ):
        run(config, opened(tmp_path / "run", config))
    alone = settings("Summed", loft={"workers": 1})
    assert run(alone, opened(tmp_path / "alone", alone))["round"] == 6


def test_widths_that_the_workers_do_not_divide_are_left_whole_and_named(tmp_path, capsys):
    options = {"name": f"{FILE}:Small", "width": None, "options": {"width": 6}}
    config = config_of(model=options)
    run(config, opened(tmp_path / "run", config))
    said = "groups    3 found by tracing, 2 split over the workers; 4 workers do not divide Conv_0 (6); 1 left "
    said += "whole (Dense_1): python -m loft_jax.groups says why\n"
    assert said in capsys.readouterr().out
    refused = config_of(model=options, loft={"partition": "all"})
    with pytest.raises(UserError, match=r"loft\.workers=4: must divide every partitioned width \(6, 12, 16\); try 2"):
        run(refused, opened(tmp_path / "refused", refused))


def trained(path, config):
    run(config, opened(path, config))
    return load_checkpoint(path)["variables"]


@pytest.mark.parametrize(("partition", "split"), [("paper", 1), ("all", 2), ("none", 0)])
def test_a_declared_network_is_split_as_it_says(partition, split, capsys):
    print_setup(Experiment.build(settings("Declared", loft={"partition": partition})))
    assert f"groups    2 declared by the network, {split} split over the workers\n" in capsys.readouterr().out


@pytest.mark.full
def test_a_declared_network_trains_to_the_bits_of_the_same_network_traced(tmp_path):
    networks = (settings(name, loft={"partition": "all"}) for name in ("Declared", "Undeclared"))
    assert_same_state(*(trained(tmp_path / config.model.name[-8:], config) for config in networks))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.campaign),
        pytest.param({"loft": {"workers": 1}, "gpipe": {"stages": 2}}, marks=pytest.mark.full),
    ],
)
def test_a_resnet_of_ones_own_trains_to_the_bits_of_the_same_by_name(changes, tmp_path, monkeypatch):
    own = trained(tmp_path / "own", settings("residual", **changes))
    by_name = partial(ResNet, blocks=(1, 2), preactivation=True)
    monkeypatch.setitem(_DECLARED, "preresnet20", (by_name, 4))
    assert_same_state(own, trained(tmp_path / "named", config_of(**changes)))


@pytest.mark.full
def test_a_pipeline_of_a_declared_network_without_norms_is_plain_sgd(tmp_path):
    """With one micro-batch, and without augmentation, whose keys differ."""
    plain = settings("Cut", loft={"workers": 1}, data={"augment": False})
    piped = settings("Cut", loft={"workers": 1}, data={"augment": False}, gpipe={"stages": 3, "microbatches": 1})
    assert_close(trained(tmp_path / "piped", piped), trained(tmp_path / "plain", plain))


def test_a_part_that_needs_more_than_its_input_is_not_trained_in_a_pipeline(tmp_path):
    model = {"options": {"dropout": 0.5}, "name": f"{FILE}:Cut", "width": None}
    config = config_of(model=model, loft={"workers": 1}, gpipe={"stages": 2})
    with pytest.raises(UserError, match=r"gpipe\.stages=2: a part of .*:Cut cannot be trained by itself: InvalidRng"):
        run(config, opened(tmp_path / "run", config))


@pytest.mark.parametrize("name", ["Small", "Declared"])
def test_a_network_that_is_no_sequence_of_blocks_is_not_cut(name, tmp_path):
    config = settings(name, loft={"workers": 1}, gpipe={"stages": 2})
    with pytest.raises(UserError, match=rf"gpipe\.stages=2: .*:{name} is not a sequence of blocks"):
        run(config, opened(tmp_path / "run", config))
