"""Retraining tickets: where the weights come from, bit-equality with plain training, resuming, and how it says no."""

import csv
import json
import shutil
import sys
from argparse import Namespace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.fake_runs import fake_summary
from helpers.runs import TICKET, assert_same_state, config_of, opened
from helpers.tiny import flat

from loft_jax import create_model, load_checkpoint, prune
from loft_jax.data.digits import load_digits
from loft_jax.errors import UserError
from loft_jax.models import TrainingFlops, parameter_count, training_flops
from loft_jax.retrain import __main__ as command
from loft_jax.retrain.__main__ import draw_missing
from loft_jax.retrain.retraining import _costs
from loft_jax.storage.checkpoints import read_state
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.train.__main__ import run as train
from loft_jax.train.progress import TrainingProgress
from loft_jax.train.trainer import Trainer

MODEL = create_model("preresnet20", 10, width=4)
GROUPS = MODEL.filter_groups()


def kept_of(path):
    return json.loads((path / "ticket.json").read_text())["kept"]


@pytest.mark.full
def test_a_ticket_of_all_filters_rewound_to_the_start_is_plain_sgd_to_the_bit(run, retrain, tmp_path):
    alone = config_of(loft={"workers": 1})
    train(alone, opened(tmp_path / "plain", alone))
    retrain(run, "--ticket", "r6-group-l2-0")
    retrained = read_state(run / "retrain/r6-group-l2-0/rewind/seed0/checkpoints", 6)
    assert_same_state(retrained, read_state(tmp_path / "plain/checkpoints", 6))
    rows = [RunDirectory(path).rows() for path in (tmp_path / "plain", run / "retrain/r6-group-l2-0/rewind/seed0")]
    for key in ("round", "step", "epoch", "train/loss", "test/accuracy", "test/loss", "learning_rate"):
        assert [row.get(key) for row in rows[0]] == [row.get(key) for row in rows[1]], key


@pytest.mark.full
def test_the_learning_rate_rewound_to_the_tickets_own_round_is_training_to_the_end(retrain, tmp_path):
    """Without momentum, which a snapshot does not hold, and with all filters, nothing of the run is missing."""
    settings = config_of(loft={"workers": 1}, optimizer={"momentum": 0.0})
    train(settings, opened(tmp_path / "run", settings))
    retrain(tmp_path / "run", "--every", 1, "--ratio", 0, "--mode", "lr_rewind", "--rewind_to", 4, "--untimed")
    retrained = RunDirectory(tmp_path / "run/retrain/r4-group-l2-0/lr_rewind-r4/seed0")
    end, own = (read_state(path / "checkpoints", 6) for path in (tmp_path / "run", retrained.path))
    assert_same_state(own["variables"]["params"], end["variables"]["params"])
    whole, part = RunDirectory(tmp_path / "run").rows(), retrained.rows()
    assert [row["round"] for row in part] == [4, 5, 6]
    for key in ("train/loss", "learning_rate", "test/accuracy"):
        assert [row.get(key) for row in part[1:]] == [row.get(key) for row in whole[5:]], key
    summary = retrained.summary()
    assert (summary["rounds"], summary["images"]) == (2, 2 * settings.images_per_round)
    assert summary["epochs"] == settings.epochs(2, 1437)


@pytest.fixture(scope="module")
def started(finished, tmp_path_factory):
    """A copy of the finished run with the tickets of its first and last snapshot retrained, all checkpoints kept."""
    path, patch = tmp_path_factory.mktemp("started") / "run", pytest.MonkeyPatch()
    shutil.copytree(finished[0], path)
    patch.setattr("loft_jax.devices.configure_jax", lambda config: None)
    arguments = ["retrain", str(path), "--every", "9", "--ratio", "0.5", "--train.keep_checkpoints", "9"]
    patch.setattr(sys, "argv", arguments)
    command.main()
    patch.undo()
    return path


@pytest.fixture(scope="module")
def starts(started, tmp_path_factory):
    """(mode, seed) -> the parameters that a retraining of the last ticket starts from, and the filters it keeps."""
    path, patch, starts = tmp_path_factory.mktemp("starts") / "run", pytest.MonkeyPatch(), {}
    shutil.copytree(started, path, ignore=shutil.ignore_patterns("retrain"))
    costs = {f"{name}{of}": 1 for name in ("parameters", "flops_per_image", "steps_images_per_second")
             for of in ("", "_unpruned")}  # fmt: skip

    def start_only(experiment, directory, start_from, **_):
        state, seed = jax.device_get(start_from()), experiment.config.seed
        starts[directory.path.parent.name, seed] = flat(state.params), kept_of(directory.path)
        return {"seed": seed, "test/accuracy": 0.5, "test/loss": 1.0}

    patch.setattr("loft_jax.devices.configure_jax", lambda config: None)
    patch.setattr("loft_jax.retrain.retraining.train_to_the_end", start_only)
    patch.setattr("loft_jax.retrain.retraining._costs", lambda *_, **__: costs)
    others = (["--rewind_to", "4"], ["--rewind_to", "3", "--mode", "lr_rewind"])
    for arguments in (["--mode", *command.MODES, "--seeds", "0", "1"], *others):
        patch.setattr(sys, "argv", ["retrain", str(path), "--ticket", TICKET, *arguments])
        command.main()
    patch.undo()
    return starts


@pytest.mark.full
@pytest.mark.parametrize(
    ("mode", "source"),
    [
        ("rewind", 0),
        ("rewind-r4", 4),
        ("finetune", 6),
        ("lr_rewind", 6),
        ("lr_rewind-r3", 6),
        ("random", 0),
        ("init", 0),
    ],
)
def test_the_weights_are_those_of_the_kept_filters_at_the_round_rewound_to(mode, source, started, starts):
    params, kept = starts[mode, 0]
    full = load_checkpoint(started, source)["variables"]
    expected = flat(prune({"params": full["params"]}, GROUPS, kept)["params"])
    assert params.keys() == expected.keys()
    for path in params:
        np.testing.assert_array_equal(params[path], expected[path], err_msg=path)


@pytest.mark.full
def test_a_ticket_is_kept_as_it_is_but_in_the_controls_that_draw_other_filters(started, starts):
    ticket = kept_of(started / "tickets" / TICKET)
    kept = {mode: starts[mode, 0][1] for mode in command.MODES}
    assert kept["rewind"] == kept["finetune"] == kept["lr_rewind"] == kept["reinit"] == ticket
    assert kept["init"] == kept_of(started / "tickets/r0-group-l2-0.5") != ticket
    sizes = [{group: len(filters) for group, filters in kept[mode].items()} for mode in ("random", "rewind")]
    assert sizes[0] == sizes[1]
    assert kept["random"] != ticket
    assert kept["random"] != starts["random", 1][1]


@pytest.mark.full
def test_new_weights_differ_from_the_initialisation_and_between_seeds_but_not_in_distribution(starts):
    new, other, old = starts["reinit", 0][0], starts["reinit", 1][0], starts["rewind", 0][0]
    kernels = [path for path in new if path.endswith("['kernel']")]
    for path in kernels:
        assert not np.isclose(new[path], old[path]).all(), path
        assert not np.isclose(new[path], other[path]).all(), path
    # As the full network's conv1, not as a narrower one's, whose initial weights would be larger by sqrt(2).
    path = "['stage3_block2']['conv1']['kernel']"
    assert new[path].std() == pytest.approx(old[path].std(), rel=0.1)


@pytest.mark.full
def test_norm_statistics_are_re_estimated_after_pruning(started):
    directory = started / "retrain" / TICKET / "rewind/seed0"
    statistics = flat(load_checkpoint(directory, 0)["variables"]["batch_stats"])
    pruned = flat(prune(load_checkpoint(started, 0)["variables"], GROUPS, kept_of(directory))["batch_stats"])
    path = "['stage3_block3']['norm1']['mean']"
    assert statistics[path].shape == pruned[path].shape
    assert not np.allclose(statistics[path], pruned[path], rtol=1e-3)


def test_the_summary_states_what_pruning_saved(started):
    summary = RunDirectory(started / "retrain" / TICKET / "rewind/seed0").summary()
    compact = MODEL.with_widths({group.name: group.width // 2 for group in GROUPS})
    assert summary["parameters"] == parameter_count(compact, (8, 8, 1))
    assert summary["parameters_unpruned"] == parameter_count(MODEL, (8, 8, 1))
    assert summary["flops_per_image"] == training_flops(compact, (8, 8, 1)).computed
    assert summary["flops_per_image"] < 0.7 * summary["flops_per_image_unpruned"]
    assert summary["steps_images_per_second"] > 0
    assert summary["steps_images_per_second_unpruned"] > 0
    assert (summary["ticket"], summary["mode"], summary["ticket_round"]) == (TICKET, "rewind", 6)
    last = RunDirectory(started / "retrain" / TICKET / "rewind/seed0").rows()[-1]
    assert summary["test/accuracy"] == last["test/accuracy"]


def test_every_kth_snapshot_is_retrained_the_last_one_always(started):
    assert {path.name for path in (started / "retrain").iterdir()} == {"r0-group-l2-0.5", TICKET, "results.csv"}
    with open(started / "retrain/results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "rewind" and row["rewind_to"] == "0"]
    assert [(row["ticket_round"], float(row["ticket_epoch"])) for row in rows] == [
        ("0", 0.0),
        ("6", pytest.approx(96 / 1437)),
    ]
    assert all(0 <= float(row["test_accuracy_mean"]) <= 1 for row in rows)


def test_what_is_finished_is_skipped_and_other_settings_are_refused(started, retrain, capsys, monkeypatch):
    monkeypatch.setattr("loft_jax.retrain.retraining.Retraining.__init__", None)
    retrain(started, "--ticket", TICKET)
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds a run with another config \(train.rounds: 6 there, 1 now\)"):
        retrain(started, "--ticket", TICKET, "--train.rounds", 1)


def test_seeds_of_different_settings_are_not_mixed(started, retrain):
    with pytest.raises(
        UserError, match=r"rewind/seed0: holds a run with another config \(train.rounds: 6 there, 1 now"
    ):
        retrain(started, "--ticket", TICKET, "--seeds", 5, "--train.rounds", 1)


@pytest.mark.parametrize("mode", ["rewind", "random"])
def test_a_ticket_that_was_changed_after_its_retraining_is_noticed(mode, started, tmp_path, retrain):
    shutil.copytree(started, tmp_path / "run")
    retrained = tmp_path / "run/retrain" / TICKET
    (retrained / "rewind").rename(retrained / mode)
    path = tmp_path / "run/tickets" / TICKET / "ticket.json"
    ticket = json.loads(path.read_text())
    ticket["kept"]["stage1/block1"] = [1]
    path.write_text(json.dumps(ticket))
    with pytest.raises(UserError, match=r"was trained with other filters than .* keeps now; delete that"):
        retrain(tmp_path / "run", "--ticket", TICKET, "--mode", mode)


@pytest.mark.full
def test_an_interrupted_retraining_goes_on_to_the_same_end(started, run, retrain, monkeypatch):
    update = TrainingProgress.update

    def interrupted(self, row):
        if row["round"] == 3:
            raise KeyboardInterrupt
        update(self, row)

    monkeypatch.setattr(TrainingProgress, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retrain(run, "--ticket", TICKET)
    monkeypatch.setattr(TrainingProgress, "update", update)
    retrain(run, "--ticket", TICKET)
    states = [read_state(path / "retrain" / TICKET / "rewind/seed0/checkpoints", 6) for path in (run, started)]
    assert_same_state(*states)


@pytest.mark.full
def test_another_seed_reads_the_runs_own_split_in_another_order(run, retrain, monkeypatch):
    """The digits' split is a function of the seed: images the run has trained on must not be tested on."""
    seen = []

    def spied(trainer, *arguments):
        seen.append((trainer._experiment.config.seed, trainer._experiment.dataset))
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "start", spied)
    with pytest.raises(KeyboardInterrupt):
        retrain(run, "--ticket", TICKET, "--seeds", 1)
    ((seed, data),) = seen
    assert seed == 1
    np.testing.assert_array_equal(data.test_images, load_digits(0).test_images)


def test_a_retraining_reads_the_runs_data_as_its_own_settings_say(run, retrain, monkeypatch):
    loaded = []

    def load(config):
        loaded.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("loft_jax.tickets.snapshots.load_dataset", load)
    with pytest.raises(KeyboardInterrupt):
        retrain(run, "--ticket", TICKET, "--seeds", 1, "--data.readers", 3, "--data.image_size", 17)
    ((readers, size, seed),) = [(config.data.readers, config.data.image_size, config.seed) for config in loaded]
    assert (readers, size, seed) == (3, 17, 0)


def test_a_retraining_carries_its_momentum_whatever_the_run_did():
    config = command.retrain_config(config_of(**{"loft": {"momentum": "reset"}}), {})
    assert (config.method, config.loft.momentum) == ("plain SGD", "carry")


@pytest.mark.full
def test_a_pruned_network_is_the_full_one_with_the_other_filters_silenced():
    """Kernel, scale and bias of a removed filter zero: what reaches conv2 from it is zero."""
    for name in ("preresnet20", "resnet18"):
        model = create_model(name, 10, width=8)
        image = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
        options = {"xla_backend_optimization_level": 0}
        variables = jax.device_get(jax.jit(model.init, compiler_options=options)(jax.random.key(0), image))
        rng = np.random.default_rng(0)
        kept = {g.name: np.sort(rng.permutation(g.width)[: g.width // 3 + 1]) for g in model.filter_groups()}
        # Norms as after some training: no scale is 1, no bias 0.
        variables = jax.tree.map(
            lambda leaf, rng=rng: leaf + rng.random(leaf.shape, np.float32) * (leaf.ndim == 1), variables
        )
        compact = prune(variables, model.filter_groups(), kept)
        silenced = jax.tree.map(np.copy, variables)
        for group in model.filter_groups():
            removed = np.setdiff1d(np.arange(group.width), kept[group.name])
            for path in group.axes:
                collection, module, layer, leaf = path.split("/")
                if collection == "params" and leaf in ("scale", "bias"):
                    silenced[collection][module][layer][leaf][removed] = 0
        one = model.with_widths({group: len(filters) for group, filters in kept.items()}).apply(compact, image)
        np.testing.assert_allclose(one, model.apply(silenced, image), atol=1e-4, err_msg=name)


def test_a_ticket_that_is_there_is_not_drawn_again(tmp_path, monkeypatch):
    directory = opened(tmp_path / "run", config_of())
    monkeypatch.setattr("loft_jax.devices.configure_jax", None)
    names = ["r0-group-l2-0.5", "r4-group-l2-0.5", "r6-group-l2-0.5"]
    for name in names:
        (directory.tickets / name).mkdir(parents=True)
        (directory.tickets / name / "ticket.json").touch()
    options = Namespace(
        every=1,
        ratio=0.5,
        scope=None,
        norm=None,
        group_ratios=[],
        keep_whole=[],
        at_least=1,
        round_to=1,
        score_batches=None,
        groups=None,
    )
    assert draw_missing(directory, config_of(), options, [0, 4, 6]) == names


def test_seeds_share_their_settings_and_only_the_tickets_asked_for_are_printed(run, retrain, monkeypatch):
    printed = []
    costs = {
        f"{name}{of}": 1
        for name in ("parameters", "flops_per_image", "steps_images_per_second")
        for of in ("", "_unpruned")
    }
    monkeypatch.setattr(
        "loft_jax.retrain.retraining.train_to_the_end",
        lambda experiment, *_, **__: fake_summary() | {"seed": experiment.config.seed},
    )
    monkeypatch.setattr("loft_jax.retrain.retraining._costs", lambda *_, **__: costs)
    monkeypatch.setattr(
        "loft_jax.retrain.__main__.print_results",
        lambda run, rows, rules: printed.append([row["ticket"] for row in rows]),
    )
    retrain(run, "--ticket", TICKET, "--seeds", 0, 1)
    retrain(run, "--ticket", "r6-group-l2-0")
    assert printed == [[TICKET], ["r6-group-l2-0"]]
    paths = [run / "retrain" / TICKET / f"rewind/seed{seed}/summary.json" for seed in (0, 1)]
    first, second = (json.loads(path.read_text()) for path in paths)
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["settings"] == second["settings"]


def test_costs_are_those_of_the_compact_network_beside_the_full_ones_for_an_image(monkeypatch):
    def loop(step, model, dataset, batch_size):
        return SimpleNamespace(model=model)

    monkeypatch.setattr("loft_jax.retrain.retraining.StepLoop", loop)
    monkeypatch.setattr(
        "loft_jax.retrain.retraining.images_per_second", lambda *loops: [1 / len(one.model) for one in loops]
    )
    monkeypatch.setattr("loft_jax.retrain.retraining.parameter_count", lambda model, shape: 10 * len(model))
    monkeypatch.setattr(
        "loft_jax.retrain.retraining.training_flops", lambda model, shape: TrainingFlops(len(model), 9 * len(model))
    )
    experiment = SimpleNamespace(
        config=config_of(),
        dataset=SimpleNamespace(image_shape=(8, 8, 1)),
        method=SimpleNamespace(step=None),
        model="ab",
    )
    assert _costs(experiment, "abcd", timed=True) == {
        **{"parameters": 20, "parameters_unpruned": 40, "flops_per_image": 2, "flops_per_image_unpruned": 4},
        **{"steps_images_per_second": 0.5, "steps_images_per_second_unpruned": 0.25},
    }


def test_untimed_retrainings_compile_no_step_and_state_the_same_parameters_and_flops(run, retrain, monkeypatch, capsys):
    monkeypatch.setattr(
        "loft_jax.retrain.retraining.train_to_the_end",
        lambda experiment, *_, **__: fake_summary() | {"seed": experiment.config.seed},
    )
    monkeypatch.setattr("loft_jax.retrain.retraining.StepLoop", None)
    retrain(run, "--ticket", TICKET, "--untimed")
    summary = RunDirectory(run / "retrain" / TICKET / "rewind/seed0").summary()
    compact = MODEL.with_widths({group.name: group.width // 2 for group in GROUPS})
    assert summary["parameters"] == parameter_count(compact, (8, 8, 1))
    assert summary["flops_per_image"] == training_flops(compact, (8, 8, 1)).computed
    assert summary["flops_per_image_unpruned"] == training_flops(MODEL, (8, 8, 1)).computed
    assert summary["steps_images_per_second"] is summary["steps_images_per_second_unpruned"] is None
    said = capsys.readouterr().out
    assert "of the unpruned network's; a step has 5" in said
    assert "times its speed" not in said
    (row,) = csv.DictReader((run / "retrain/results.csv").open())
    assert row["steps_images_per_second"] == ""


def test_epochs_are_as_many_rounds_as_they_need(run):
    directory = RunDirectory(run)
    # A round of the retraining reads 2 batches of 8 of the 1,437 images.
    assert command.rounds_of(1, {}, directory) == {"train.rounds": "90"}
    assert command.rounds_of(2, {"loft.local_steps": "1437", "data.batch_size": "1"}, directory) == {
        "train.rounds": "2"
    }
    # Of the schedule of its own, of which the run's rounds know nothing.
    milestones = {"optimizer.schedule": "step", "optimizer.milestones": "100"}
    assert command.rounds_of(1, milestones, directory) == {"train.rounds": "90"}
    assert command.rounds_of(None, {}, directory) == {}
    (run / "data.json").unlink()
    with pytest.raises(UserError, match=r"--epochs 3: .*run does not say how many images it has; use --train.rounds"):
        command.rounds_of(3, {}, directory)
