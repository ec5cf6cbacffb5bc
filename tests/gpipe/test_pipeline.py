"""GPipe against gradient accumulation on one device, and against plain SGD where both are the same."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.reference_round import assert_close, batches_of
from helpers.runs import assert_same_state, config_of, opened, train_rounds
from helpers.tiny import Run, config, flat

from loft_jax.config.config import Config
from loft_jax.cost.prediction import gpipe_bytes
from loft_jax.errors import UserError
from loft_jax.gpipe.cuts import boundary_floats, check_cuts, find_balanced_cut, stage_bounds
from loft_jax.models.resnet import ResNet
from loft_jax.retrain.__main__ import retrain_config
from loft_jax.storage.checkpoints import read_state
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.tickets.snapshots import Snapshots
from loft_jax.train.__main__ import print_summary, run
from loft_jax.train.experiment import Experiment
from loft_jax.train.overview import print_setup

DEEP = ResNet(blocks=(2, 2), num_classes=3, width=4, preactivation=True)
POST = DEEP.clone(preactivation=False)


FULL_AND_COMPAT = (pytest.mark.full, pytest.mark.compat)


def pipeline(stages, microbatches=2, model=DEEP, **settings):
    gpipe = {"gpipe__stages": stages, "gpipe__microbatches": microbatches}
    return Run(config(loft__workers=1, **gpipe, **settings), model=model)


@partial(jax.jit, static_argnames="model")
def accumulated(params, batch_stats, images, labels, model=DEEP):
    """Means over micro-batches [M, batch, ...] of loss, gradients and updated statistics, on one device."""

    def loss_of(params, images, labels):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]), updated["batch_stats"]

    parts = [jax.value_and_grad(loss_of, has_aux=True)(params, *part) for part in zip(images, labels, strict=True)]
    return jax.tree.map(lambda *values: sum(values) / len(values), *parts)


def micro_batches(settings, round_number, parts):
    """[step, M, batch, ...] images, and labels."""
    batches = list(batches_of(settings, 0, round_number))
    return [(np.split(np.asarray(x), parts), np.split(np.asarray(y), parts)) for x, y in batches]


@pytest.mark.parametrize(
    ("stages", "parts", "model"),
    [pytest.param(4, 4, DEEP, marks=pytest.mark.full), (1, 2, DEEP), pytest.param(2, 4, POST, marks=FULL_AND_COMPAT)],
)
def test_loss_and_gradients_are_those_of_gradient_accumulation(stages, parts, model):
    run = pipeline(stages, parts, model)
    images, labels = micro_batches(run.config, 0, parts)[0]
    start = run.full.params, run.full.batch_stats
    (loss, stats), gradients = accumulated(*start, np.stack(images), np.stack(labels), model)
    first, last = run.round.devices[0], run.round.devices[-1]
    sums = run.round.gradients(
        run.state.stages, jax.device_put(images, first), jax.device_put([y.astype(np.int32) for y in labels], last)
    )
    np.testing.assert_allclose(sums[-1].pop("loss"), loss, rtol=1e-6)
    got = {kind: {k: v for own in sums for k, v in own[kind].items()} for kind in ("gradients", "batch_stats")}
    assert_close(got, {"gradients": gradients, "batch_stats": stats})


@pytest.mark.parametrize("stages", [2, pytest.param(4, marks=FULL_AND_COMPAT)])
def test_rounds_are_those_of_gradient_accumulation(stages):
    run, parts = pipeline(stages, 2, optimizer__label_smoothing=0.0), 2
    params, stats = run.full.params, run.full.batch_stats
    momentum, schedule = jax.tree.map(np.zeros_like, params), run.round.step.learning_rate
    decay, keep = run.config.optimizer.weight_decay, run.config.optimizer.momentum
    losses = []
    for round_number in range(2):
        for i, (images, labels) in enumerate(micro_batches(run.config, round_number, parts)):
            (loss, stats), gradients = accumulated(params, stats, np.stack(images), np.stack(labels))
            gradients = jax.tree_util.tree_map_with_path(
                lambda path, g, p: g + decay * p if path[-1].key == "kernel" else g, gradients, params
            )
            momentum = jax.tree.map(lambda m, g: keep * m + g, momentum, gradients)
            rate = schedule(round_number * run.config.loft.local_steps + i)
            params = jax.tree.map(lambda p, m, rate=rate: p - rate * m, params, momentum)
            losses.append(float(loss))
    assert_close(run.rounds(2), {"params": params, "batch_stats": stats, "momentum": momentum})
    np.testing.assert_allclose(run.loss, np.mean(losses[-3:]), rtol=1e-5)


@pytest.mark.full
def test_one_micro_batch_is_plain_sgd():
    settings = {"loft__momentum": "reset", "data__augment": False}
    piped = pipeline(2, 1, **settings).rounds(2)
    plain = Run(config(loft__workers=1, **settings), model=DEEP).rounds(2)
    assert piped.keys() == plain.keys()
    assert_close(piped, plain)


@pytest.mark.full
def test_stages_lie_on_different_devices_and_nowhere_else():
    run = pipeline(4)
    run.rounds(1)
    held = []
    for stage, device in zip(run.state.stages, run.round.devices, strict=True):
        assert {leaf.devices() == {device} for leaf in jax.tree.leaves(stage)} == {True}
        held += [f"{kind}/{name}" for kind, modules in stage.collections.items() for name in modules]
    assert len(set(run.round.devices)) == 4
    assert len(held) == len(set(held)), "no variable is on two devices"
    assert flat(run.round.full(run.state)).keys() == flat(run.full).keys()


@pytest.mark.full
@pytest.mark.parametrize(
    ("stages", "precision", "size"), [pytest.param(4, "float32", 4, marks=pytest.mark.full), (2, "bfloat16", 2)]
)
def test_what_a_step_transfers_is_what_the_ledger_says(stages, precision, size):
    run = pipeline(stages, 4, precision=precision)
    run.rounds(1)
    names = DEEP.block_names()
    boundaries = boundary_floats(DEEP, (6, 6, 2), [names[last - 1] for _, last in run.round.bounds[:-1]])
    steps, batch = run.config.loft.local_steps, run.config.data.batch_size
    assert run.round.transfers.bytes == steps * gpipe_bytes(boundaries, batch, size)
    assert run.round.transfers.count == steps * 2 * (stages - 1) * 4


@pytest.mark.full
def test_micro_batches_change_the_result():
    one, two = (pipeline(2, parts).rounds(1)["params"] for parts in (1, 2))
    assert (one["head"]["kernel"] != two["head"]["kernel"]).any()


def test_nothing_compiles_after_the_second_round():
    run, compilations = pipeline(2), []
    run.rounds(2)
    listener = lambda event, _, **__: compilations.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        run.rounds(2)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert compilations == []


# Where the stages end.


def test_a_balanced_cut_has_the_cheapest_costliest_stage_and_then_the_fewest_bytes():
    assert find_balanced_cut([1, 1, 1, 1], [8, 8, 8], 2) == [(0, 2), (2, 4)]
    assert find_balanced_cut([5, 1, 1, 1], [8, 8, 8], 2) == [(0, 1), (1, 4)]
    assert find_balanced_cut([1, 4, 1], [8, 2], 2) == [(0, 2), (2, 3)]
    assert find_balanced_cut([3, 1, 2], [1, 1], 1) == [(0, 3)]
    assert find_balanced_cut([3, 1, 2], [1, 1], 3) == [(0, 1), (1, 2), (2, 3)]


def cut(name="preresnet34", **gpipe):
    from loft_jax import create_model

    settings = Config.model_validate({"model": {"name": name}, "gpipe": gpipe})
    return stage_bounds(create_model(name, 10), settings, (32, 32, 3))


def test_cuts_are_balanced_the_papers_or_ones_own():
    assert cut(stages=4) == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert cut(stages=4, cuts="paper") == [(0, 4), (4, 8), (8, 14), (14, 16)]
    assert cut(stages=3, cuts="stage1/block1,stage4/block2") == [(0, 1), (1, 15), (15, 16)]
    assert cut(stages=3, cuts=["stage1/block1", "stage4/block2"]) == [(0, 1), (1, 15), (15, 16)]
    assert cut(stages=1) == [(0, 16)]


@pytest.mark.parametrize(
    ("name", "gpipe", "message"),
    [
        ("preresnet20", {"stages": 12}, "gpipe.stages=12: must be at most the 9 blocks of preresnet20; try 9"),
        ("preresnet34", {"stages": 3, "cuts": "paper"}, "gpipe.cuts=paper: the paper cuts preresnet18, preresnet34"),
        ("preresnet20", {"stages": 2, "cuts": "paper"}, "not preresnet20 into 2; try balanced"),
        (
            "preresnet20",
            {"stages": 2, "cuts": "stage2/block4"},
            "stage2/block4 must be a block of preresnet20 and not its last one",
        ),
        ("preresnet20", {"stages": 2, "cuts": "stage3/block3"}, "did you mean stage3/block2?"),
        (
            "preresnet20",
            {"stages": 3, "cuts": "stage2/block1,stage1/block1"},
            "must be in network order, each block once; try stage1/block1,stage2/block1",
        ),
    ],
)
def test_cuts_that_the_model_does_not_have_are_refused(name, gpipe, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Experiment.build(Config.model_validate({"model": {"name": name}, "gpipe": gpipe}))


def test_a_network_that_is_no_sequence_of_blocks_is_refused():
    message = "gpipe.stages=2: preresnet20 is not a sequence of blocks, so it cannot be cut into stages"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_cuts(object(), Config.model_validate({"gpipe": {"stages": 2}}))


def test_a_stage_without_a_device_is_refused():
    message = "gpipe.stages=5: each stage needs its own device, and only 4 cpu devices are available; try 4; on a CPU"
    with pytest.raises(UserError, match=re.escape(message)):
        Experiment.build(Config.model_validate({"gpipe": {"stages": 5}}))


def test_a_second_process_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="GPipe runs in one process, but 2 were started; start one"):
        Experiment.build(config_of(**SETTINGS))


# Through the train command.

SETTINGS = {"loft": {"workers": 1}, "gpipe": {"stages": 2, "microbatches": 2}}


@pytest.fixture(scope="module")
def piped(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "gpipe"
    return path, run(config_of(**SETTINGS), opened(path, config_of(**SETTINGS)))


@pytest.mark.full
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(piped, tmp_path):
    train_rounds(tmp_path / "resumed", config_of(**SETTINGS), 5)
    run(config_of(**SETTINGS), opened(tmp_path / "resumed", config_of(**SETTINGS)))
    assert_same_state(read_state(tmp_path / "resumed/checkpoints", 6), read_state(piped[0] / "checkpoints", 6))


@pytest.mark.full
def test_the_run_says_what_goes_between_the_stages(piped, capsys):
    experiment = Experiment.build(config_of(**SETTINGS))
    boundary = boundary_floats(experiment.model, (8, 8, 1), ["stage2/block1"])
    summary = piped[1]
    assert summary["gpipe_stages"] == 2
    assert summary["bytes_on_the_wire"] == 6 * 2 * gpipe_bytes(boundary, 8)
    rows = RunDirectory(piped[0]).rows()
    assert [row.get("bytes_on_the_wire") for row in rows] == [None, *[2 * gpipe_bytes(boundary, 8)] * 6]
    print_setup(experiment)
    print_summary(summary)
    said = capsys.readouterr().out
    assert "mesh      2 stages, a device each" in said
    assert "stages    stage1/block1 to stage2/block1 on cpu:0, stage2/block2 to stage3/block3 on cpu:1" in said
    assert f"pipeline  2 micro-batches of 4; {gpipe_bytes(boundary, 8) / 1e6:.2f} MB a step between the stages" in said
    assert "finished  preresnet20 on digits, GPipe-2: " in said


@pytest.mark.full
def test_a_ticket_of_a_pipelines_run_is_drawn_from_it_and_retrained_without_one(piped):
    snapshots = Snapshots(RunDirectory(piped[0]))
    ticket = snapshots.ticket(snapshots.scores(6, "l2"), 6, 0.5, "group", "l2")
    assert {name: len(kept) for name, kept in ticket.kept.items()}["stage3/block3"] == 8
    retraining = retrain_config(snapshots.config, {})
    assert (retraining.gpipe, retraining.loft.workers) == (Config().gpipe, 1)


def test_a_stage_sends_its_result_on_and_the_gradient_of_its_input_back():
    run = tiny.Run(tiny.config(gpipe__stages=3, gpipe__microbatches=2, loft__workers=1))
    first, second = (4 * int(np.prod(x.shape)) for x in run.round.inputs[1:])
    assert first != second
    assert run.round.sent_per_microbatch == [first, first + second, second]
