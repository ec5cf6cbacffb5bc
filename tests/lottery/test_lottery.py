"""Levels as the command trains them: what is removed, what stays; an interrupted lottery goes on to the bit."""

import csv
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import yaml
from helpers.fake_runs import fake_summary
from helpers.lotteries import SETTINGS, lottery_of, training_of
from helpers.runs import assert_same_state, opened
from helpers.tiny import flat

from loft_jax.devices import replicate
from loft_jax.errors import RunStopped, UserError
from loft_jax.filters import prune
from loft_jax.lottery import __main__ as command
from loft_jax.lottery.chain import Chain
from loft_jax.lottery.masks import read_masks
from loft_jax.lottery.targets import Filters, Weights
from loft_jax.storage import RunDirectory, load_checkpoint, saved_rounds
from loft_jax.train import __main__ as train
from loft_jax.train.experiment import Experiment
from loft_jax.train.trainer import Trainer

SHAPES = {"Dense_0": (64, 32), "Dense_1": (16, 10), "Dense_2": (32, 16)}
GROUPS = {"Dense_0": (32,), "Dense_2": (16,)}
TRAININGS = ["level0/ticket", *(f"level{k}/{c}" for k in (1, 2) for c in ("ticket", "random", "reinit", "init"))]


@pytest.fixture(autouse=True)
def _devices(monkeypatch):
    monkeypatch.setattr("loft_jax.devices.configure_jax", lambda config: None)


@pytest.fixture(scope="module")
def lottery(tmp_path_factory):
    """A finished lottery of one seed, to be read only."""
    path = tmp_path_factory.mktemp("lottery") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loft_jax.devices.configure_jax", lambda config: None)
        start(path)
    return path


def start(path, seeds=(0,), **changes):
    """What the command does with these settings."""
    config, directory = lottery_of(**changes), RunDirectory(path, "--workdir")
    command.open_lottery(directory, config)
    command.complete(path, config, seeds)
    return command.write_levels(path)


def params_of(path, round_number=None):
    return load_checkpoint(path, round_number)["variables"]["params"]


def masks_of(lottery, training):
    return read_masks(lottery / "seed0" / training / "masks.npz", SHAPES)


def test_each_level_removes_the_smallest_weights_that_are_left(lottery):
    before = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    for level in (1, 2):
        ended = params_of(lottery / f"seed0/level{level - 1}/ticket")
        masks = masks_of(lottery, f"level{level}/ticket")
        for name, mask in masks.items():
            removed, magnitude = before[name] & ~mask, np.abs(ended[name]["kernel"])
            assert removed.sum() == int(before[name].sum() * 0.2 + 0.5)
            assert not (mask & ~before[name]).any()
            assert magnitude[removed].max() <= magnitude[mask].min()
        before = masks


@pytest.mark.parametrize("training", TRAININGS[1:])
def test_removed_weights_are_exactly_zero_and_the_others_are_trained(training, lottery):
    masks, first = masks_of(lottery, training), params_of(lottery / "seed0/level0/ticket", 0)
    ended = params_of(lottery / "seed0" / training)
    for name, mask in masks.items():
        kernel = ended[name]["kernel"]
        assert (kernel[~mask] == 0).all()
        assert not np.signbit(kernel[~mask]).any()
        moved = np.abs(kernel - first[name]["kernel"])[mask]
        assert moved.max() > 0
        # A control that is initialised anew is far from the start, the others are not.
        assert (np.median(moved) > 0.1 * np.abs(first[name]["kernel"]).mean()) == ("reinit" in training)


@pytest.mark.parametrize("training", ["level2/ticket", "level1/random", "level2/init"])
def test_what_is_left_begins_where_the_whole_network_began(training, lottery):
    began, masks = params_of(lottery / "seed0" / training, 0), masks_of(lottery, training)
    first = params_of(lottery / "seed0/level0/ticket", 0)
    for name, mask in masks.items():
        np.testing.assert_array_equal(began[name]["kernel"], np.where(mask, first[name]["kernel"], 0))
        np.testing.assert_array_equal(began[name]["bias"], first[name]["bias"])


def test_what_is_left_is_set_back_to_the_round_asked_for(tmp_path):
    start(tmp_path / "run", lottery={"levels": 1, "controls": "reinit", "rewind_to": "12 steps"})
    whole, ticket, reinit = (
        tmp_path / "run/seed0" / name for name in ("level0/ticket", "level1/ticket", "level1/reinit")
    )
    assert saved_rounds(whole / "snapshots") == [0, 3]
    began, then, anew = params_of(ticket, 0), params_of(whole, 3), params_of(reinit, 0)
    for name, mask in masks_of(tmp_path / "run", "level1/ticket").items():
        np.testing.assert_array_equal(began[name]["kernel"], np.where(mask, then[name]["kernel"], 0))
        np.testing.assert_array_equal(began[name]["bias"], then[name]["bias"])
        assert (anew[name]["kernel"][mask] != then[name]["kernel"][mask]).all()
        assert (anew[name]["kernel"][~mask] == 0).all()


def test_controls_keep_as_many_weights_of_each_layer(lottery):
    first = params_of(lottery / "seed0/level0/ticket", 0)
    for level in (1, 2):
        ticket, random_, reinit, init = (
            masks_of(lottery, f"level{level}/{name}") for name in ("ticket", "random", "reinit", "init")
        )
        for name, mask in ticket.items():
            assert mask.sum() == random_[name].sum() == init[name].sum()
            assert (reinit[name] == mask).all()
            assert (random_[name] != mask).any()
            magnitude = np.abs(first[name]["kernel"])
            assert magnitude[init[name]].min() >= magnitude[~init[name]].max()


def test_the_whole_network_is_trained_as_the_train_command_trains_it(lottery, tmp_path):
    config = training_of()
    summary = train.run(config, opened(tmp_path / "run", config))
    there = RunDirectory(lottery / "seed0/level0/ticket")
    assert there.read_config() == config
    assert_same_state(params_of(tmp_path / "run"), params_of(there.path))
    assert summary["test/loss"] == there.summary()["test/loss"]
    assert RunDirectory(lottery / "seed0/level1/ticket").snapshots.exists() is False


def test_levels_csv_has_the_step_of_least_validation_loss(lottery):
    with open(lottery / "levels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [f"level{row['level']}/{row['control']}" for row in rows] == [
        "level0/ticket",
        *(f"level{k}/{c}" for k in (1, 2) for c in ("ticket", "init", "random", "reinit")),
    ]
    for row in rows:
        metrics = RunDirectory(lottery / f"seed0/level{row['level']}/{row['control']}").rows()
        least = min(metrics, key=lambda measured: measured["validation/loss"])
        assert int(row["early_step"]) == least["step"]
        assert float(row["early_test_accuracy"]) == least["test/accuracy"]
        assert float(row["end_test_accuracy"]) == metrics[-1]["test/accuracy"]
        masks = {"level0": [np.ones(shape) for shape in SHAPES.values()]}
        found = masks.get(f"level{row['level']}") or masks_of(lottery, f"level{row['level']}/ticket").values()
        assert int(row["weights_left"]) == sum(mask.sum() for mask in found)
        assert float(row["share_left"]) == int(row["weights_left"]) / int(row["weights"])


def test_a_finished_lottery_is_not_trained_again_and_grows_by_levels_and_seeds(lottery, tmp_path, capsys, monkeypatch):
    shutil.copytree(lottery, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("loft_jax.lottery.chain.Chain", None)
        rows = start(tmp_path / "run")
    assert "already complete" in capsys.readouterr().out
    assert len(rows) == len(TRAININGS)
    rows = start(tmp_path / "run", lottery={"levels": 3, "controls": "none"})
    assert [(row["level"], row["control"]) for row in rows][len(TRAININGS) :] == [(3, "ticket")]
    assert "training  1/1: seed 0, level 3, ticket" in capsys.readouterr().out


def test_a_control_that_stops_leaves_the_others_and_a_ticket_ends_its_seed(tmp_path, monkeypatch, capsys):
    class Stopping:
        def __init__(self, run, config, seed):
            self.seed = seed

        def run(self, training, preemption):
            if (self.seed, training.level, training.control) in ((0, 1, "random"), (1, 1, "ticket")):
                raise RunStopped("the loss is nan")
            facts = {"level": training.level, "control": training.control, "rewind_to": 0}
            return fake_summary() | facts | {"weights": 4, "weights_left": 3}

    monkeypatch.setattr("loft_jax.lottery.chain.Chain", Stopping)
    config = lottery_of(lottery={"controls": "random"})
    command.open_lottery(RunDirectory(tmp_path / "run"), config)
    stops = command.complete(tmp_path / "run", config, [0, 1, 2])
    assert stops == [
        f"{tmp_path / 'run/seed0/level1/random'}: the loss is nan",
        f"{tmp_path / 'run/seed1/level1/ticket'}: the loss is nan",
    ]
    assert len(list((tmp_path / "run").glob("seed*/*/*/summary.json"))) == 4 + 1 + 5
    assert "training  15/15: seed 2, level 2, random" in capsys.readouterr().out


class _KilledError(BaseException):
    pass


@pytest.mark.full
def test_a_lottery_that_is_interrupted_at_any_stage_ends_with_the_same_bits(lottery, tmp_path, monkeypatch):
    """At every write of a file of its own, and after rounds of trainings."""
    places = ["loft_jax.lottery.chain.write_masks", "loft_jax.lottery.__main__.write_levels"]
    moments = random.Random(0)
    for place in [*places, "loft_jax.train.trainer.Trainer.train_one_round"]:
        with monkeypatch.context() as patch:
            _interrupt(patch, place, moments.randrange(1, 3))
            with pytest.raises(_KilledError):
                start(tmp_path / "run")
    start(tmp_path / "run")
    assert_same_lottery(tmp_path / "run", lottery)


def _interrupt(patch, place, calls):
    """Stop at the call of this number."""
    module, _, name = place.rpartition(".")
    owner = Trainer if module.endswith("Trainer") else sys.modules[module]
    original, left = getattr(owner, name), [calls]

    def stop(*arguments):
        left[0] -= 1
        if not left[0]:
            raise _KilledError
        return original(*arguments)

    patch.setattr(owner, name, stop)


def assert_same_lottery(one, other):
    for training in TRAININGS:
        assert_same_state(params_of(one / "seed0" / training), params_of(other / "seed0" / training))
        if "level0" not in training:
            assert_same_state(masks_of(one, training), masks_of(other, training))
    assert (one / "levels.csv").read_bytes() == (other / "levels.csv").read_bytes()


@pytest.mark.campaign
def test_a_lottery_that_is_killed_at_ten_moments_ends_with_the_same_bits(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(SETTINGS))
    moments = random.Random(1)

    def go(path):
        arguments = ["-m", "loft_jax.lottery", "--config", tmp_path / "c.yaml", "--workdir", path]
        return subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, text=True)

    undisturbed = go(tmp_path / "undisturbed")
    undisturbed.communicate(timeout=600)
    assert undisturbed.returncode == 0
    for kill in range(10):
        process = go(tmp_path / "killed")
        done = len(list((tmp_path / "killed").glob("seed0/*/*/metrics.jsonl")))
        deadline = time.monotonic() + 300
        while len(list((tmp_path / "killed").glob("seed0/*/*/metrics.jsonl"))) <= done and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        if process.returncode == 0:
            assert kill > 5, "it ended before it could be killed"
            break
    final = go(tmp_path / "killed")
    final.communicate(timeout=600)
    assert final.returncode == 0
    assert_same_lottery(tmp_path / "killed", tmp_path / "undisturbed")


# Masks against networks that never had what they remove.


@pytest.mark.parametrize(
    "optimizer", [{"momentum": 0.9, "weight_decay": 5e-4}, {"name": "adam", "learning_rate": 1e-3}]
)
def test_masked_neurons_train_as_a_network_without_them(optimizer):
    """Neurons without any weight into or out of them are not there; the rest differs by rounding alone."""
    config = training_of(optimizer=optimizer)
    whole = Experiment.build(config, pruned=True)
    kept = {"Dense_0": np.arange(32) % 3 > 0, "Dense_2": np.arange(16) % 4 > 0}
    filters = Filters(whole.model, whole.dataset.image_shape, relative=False)
    assert set(filters.shapes) == set(kept)
    narrow = filters.build(config, whole.dataset, filters.widths(kept))
    masks = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    masks["Dense_0"][:, ~kept["Dense_0"]] = masks["Dense_2"][~kept["Dense_0"]] = False
    masks["Dense_2"][:, ~kept["Dense_2"]] = masks["Dense_1"][~kept["Dense_2"]] = False
    params = jax.device_get(whole.initialise("params", jax.random.key(3)))
    weights = Weights(whole.model, whole.dataset.image_shape)
    ended = [
        rounds_of(experiment, target.start(experiment, params, chosen), 5)
        for experiment, target, chosen in ((whole, weights, masks), (narrow, filters, kept))
    ]
    pruned = prune({"params": ended[0].params}, filters._groups, {k: np.flatnonzero(v) for k, v in kept.items()})
    one, other = flat(pruned["params"]), flat(ended[1].params)
    for path in one:
        np.testing.assert_allclose(one[path], other[path], atol=2e-6, err_msg=path)
    for name, mask in masks.items():
        assert (np.asarray(ended[0].params[name]["kernel"])[~mask] == 0).all()


def rounds_of(experiment, state, count):
    """The full state after so many rounds."""
    state = experiment.method.place(replicate(state, experiment.mesh))
    for _ in range(count):
        state, _ = experiment.method.finish(state, *experiment.method.train_locally(state))
    return jax.device_get(experiment.method.full(state))


@pytest.mark.full
@pytest.mark.parametrize("sync", ["psum", "exchange"])
def test_levels_may_be_trained_by_loft(sync, tmp_path):
    rows = start(tmp_path / "run", loft={"workers": 2, "sync": sync}, lottery={"levels": 1, "controls": "none"})
    assert len(rows) == 2
    for name, mask in masks_of(tmp_path / "run", "level1/ticket").items():
        kernel = params_of(tmp_path / "run/seed0/level1/ticket")[name]["kernel"]
        assert (kernel[~mask] == 0).all()
        assert (kernel[mask] != 0).mean() > 0.99


def test_filters_are_really_removed(tmp_path):
    rows = start(
        tmp_path / "run", lottery={"levels": 2, "prune": "filters", "rates": "Dense_0=0.25", "controls": "none"}
    )
    assert [row["weights_left"] for row in rows] == [2720, 2080, 1600]
    masks = read_masks(tmp_path / "run/seed0/level2/ticket/masks.npz", GROUPS)
    assert masks["Dense_0"].sum() == 18
    assert masks["Dense_2"].all()
    ended = params_of(tmp_path / "run/seed0/level2/ticket")
    assert {name: ended[name]["kernel"].shape for name in SHAPES} == {
        "Dense_0": (64, 18),
        "Dense_1": (16, 10),
        "Dense_2": (18, 16),
    }
    before = params_of(tmp_path / "run/seed0/level0/ticket")["Dense_0"]["kernel"]
    kept = read_masks(tmp_path / "run/seed0/level1/ticket/masks.npz", GROUPS)["Dense_0"]
    norms = np.linalg.norm(before, axis=0)
    assert norms[~kept].max() <= norms[kept].min()


# Bad input that only network and data show.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lottery": {"rates": "Dense_*=0.2,conv*=0.1"}},
            "lottery.rates: the pattern conv* matches no layer; there are",
        ),
        (
            {"lottery": {"prune": "filters", "rates": "Dense_1=0.2"}},
            "matches no filter group; there are Dense_0, Dense_2",
        ),
        ({"lottery": {"levels": 40, "rates": "Dense_1=0.5"}}, "level 8 would remove the last weight of Dense_1; use"),
        (
            {"lottery": {"levels": 9, "prune": "filters", "rates": "Dense_2=0.5"}},
            "level 5 would remove the last filter",
        ),
        ({"data": {"validation": 8}}, "data.validation=8: 8 images are held out, and none of the "),
        (
            {"lottery": {"prune": "filters", "scope": "global"}, "loft": {"workers": 2}},
            "lottery.scope=global: how many filters of a group are left is not known before",
        ),
        (
            {"lottery": {"prune": "filters"}, "loft": {"workers": 2, "partition": "all"}},
            "lottery.levels=2: at level 1, loft.workers=2: must divide every partitioned width",
        ),
    ],
)
def test_what_network_and_data_show_is_refused_before_anything_is_trained(changes, message, tmp_path):
    with pytest.raises(UserError) as caught:
        Chain(tmp_path, lottery_of(**changes), 0)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_directory_of_something_else_is_refused(lottery, tmp_path):
    shutil.copytree(lottery / "seed0/level1/ticket", tmp_path / "run")
    for changes, path, message in (
        ({}, tmp_path / "run", "holds a run of another command; use another directory"),
        ({"lottery": {"rates": "*=0.1"}}, lottery, "holds a lottery with other settings (lottery.rates: *=0.2 there, "),
        ({"train": {"rounds": 5}}, lottery, "holds a run with another config (train.rounds: 4 there, 5 now)"),
    ):
        with pytest.raises(UserError) as caught:
            start(path, **changes)
        assert message in str(caught.value)


def test_masks_of_another_network_are_refused(lottery, tmp_path):
    shutil.copytree(lottery, tmp_path / "run")
    training = tmp_path / "run/seed0/level2/init"
    (training / "summary.json").unlink()
    (training / "masks.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"level2/init/masks.npz: cannot be read"):
        start(tmp_path / "run")
