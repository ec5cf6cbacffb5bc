"""Networks of users' own through every command: Linen and NNX, with norms and dropout or without."""

import json
import shutil

import pytest
from helpers import TESTS
from helpers.runs import assert_same_state, config_of, opened, train_rounds
from helpers.tiny import flat

from loft_jax import load_checkpoint
from loft_jax.errors import UserError
from loft_jax.report.__main__ import run as write_report
from loft_jax.retrain.__main__ import main as retrain_command
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.tickets.__main__ import main as tickets_command
from loft_jax.train.__main__ import run

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
    assert "groups    3 found by tracing, 2 split over the workers; 4 workers do not divide Conv_0 (6)" in (
        capsys.readouterr().out
    )
    refused = config_of(model=options, loft={"partition": "all"})
    with pytest.raises(UserError, match=r"loft\.workers=4: must divide every partitioned width \(6, 12, 16\); try 2"):
        run(refused, opened(tmp_path / "refused", refused))


def test_a_network_that_is_no_sequence_of_blocks_is_not_cut(tmp_path):
    config = settings("Small", loft={"workers": 1}, gpipe={"stages": 2})
    with pytest.raises(UserError, match=r"gpipe\.stages=2: .*:Small is not a sequence of blocks"):
        run(config, opened(tmp_path / "run", config))
