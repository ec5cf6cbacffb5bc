"""A round against something simpler: plain SGD, a loop over separate sub-CNNs, other numbers of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.reference_round import assert_close, batches_of, round_by_a_loop, step_programs
from helpers.tiny import MODEL, Run, config, flat
from helpers.two_layers import TwoLayers

from loft_jax.devices.mesh import WORKER
from loft_jax.loft.split import split_groups


@pytest.mark.compat
@pytest.mark.parametrize("fused", [False, True], ids=["stepwise", "fused"])
def test_a_round_equals_a_plain_loop_over_separate_sub_cnns(fused):
    settings = config(mesh__cpu_devices=4)
    run = Run(settings, fused=fused)
    start = run.rounds(1)  # A second round starts from momentum and statistics that are not zero.
    expected, loss = round_by_a_loop(settings, start, 1)
    assert_close(run.rounds(1), expected)
    np.testing.assert_allclose(float(run.loss), loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("pruned", "settings"),
    [
        (True, {"optimizer__name": "adamw", "optimizer__learning_rate": 0.01}),
        pytest.param(True, {}, marks=pytest.mark.full),
        pytest.param(False, {"optimizer__name": "adam", "optimizer__learning_rate": 0.01}, marks=pytest.mark.full),
    ],
)
def test_rounds_with_other_optimizers_and_of_pruned_weights_equal_the_loop(pruned, settings):
    settings = config(**settings)
    run = Run(settings, pruned=pruned)
    start = run.rounds(1)
    expected, _ = round_by_a_loop(settings, start, 1)
    after = run.rounds(1)
    assert_close(after, expected, rtol=1e-4, atol=1e-5)
    if pruned:
        assert any(not leaf.all() for leaf in jax.tree.leaves(after["kept"]))
        for kept, leaf in zip(*(jax.tree.leaves(after[name]) for name in ("kept", "params")), strict=True):
            assert not leaf[~kept].any()


@pytest.mark.compat
def test_one_worker_is_bit_equal_to_plain_sgd():
    settings = config(loft__workers=1)
    run = Run(settings)
    params, stats = jax.device_get((run.state.params, run.state.batch_stats))
    after = run.rounds(3)
    initialise, step = step_programs(settings, MODEL)
    optimizer_state = initialise(params)
    for round_number in range(3):
        for images, labels in batches_of(settings, 0, round_number):
            params, stats, optimizer_state, _ = step(params, stats, optimizer_state, images, labels)
    momentum = optax.tree_utils.tree_get(optimizer_state, "trace")
    expected = flat({"params": params, "batch_stats": stats, "momentum": momentum})
    for path, leaf in flat({k: after[k] for k in ("params", "batch_stats", "momentum")}).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


@pytest.mark.full
def test_a_round_is_the_same_on_one_two_and_four_devices():
    states = {d: Run(config(mesh__worker=d)).rounds(1) for d in (1, 2, 4)}
    owned_paths = {p for group in split_groups(MODEL, config()) if group.partitioned for p in group.axes}
    owned = {"".join(f"['{part}']" for part in path.split("/")) for path in owned_paths}
    for devices in (1, 2):
        one, other = flat(states[devices]), flat(states[4])
        assert owned <= one.keys()
        for path in one:
            if path in owned:
                np.testing.assert_array_equal(one[path], other[path], err_msg=path)
            else:
                np.testing.assert_allclose(one[path], other[path], rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.full)], ids=["stepwise", "fused"])
def test_a_worker_on_two_devices_equals_one_with_the_whole_batch(fused):
    one = Run(config(loft__workers=2, mesh__worker=2, mesh__data=1)).rounds(2)
    two = Run(config(loft__workers=2, mesh__worker=2, mesh__data=2), fused=fused).rounds(2)
    assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_fused_and_stepwise_agree():
    assert_close(Run(config(), fused=True).rounds(2), Run(config(), fused=False).rounds(2))


def test_nothing_compiles_after_the_second_round():
    run = Run(config())
    run.rounds(2)
    compilations = []
    listener = lambda event, _, **__: compilations.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        run.rounds(3)
        assert compilations == []
        jax.jit(lambda x: x + 1.5)(jnp.float32(0))
        assert compilations, "the listener must notice a compilation"
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_nothing_crosses_from_host_to_device_in_a_round():
    run = Run(config())
    run.rounds(1)
    with jax.transfer_guard_host_to_device("disallow"):
        run.rounds(2)
        with pytest.raises(Exception, match="transfer"):
            jnp.sin(np.ones(3)).block_until_ready()


def test_the_partition_is_sharded_over_the_workers_and_new_in_each_round():
    run = Run(config())
    masks = []
    for _ in range(2):
        mask, workers = run.round.train_locally(run.state)
        masks.append(mask["stage2/block2"])
        assert mask.keys() == {"stage2/block2"}
        assert mask["stage2/block2"].sharding.spec == jax.sharding.PartitionSpec(WORKER)
        kernel = workers[0]["compact"].params["kernels"]["stage2_block2"]["conv1"]["kernel"]
        assert kernel.shape == (4, 3, 3, 8, 2), "a device holds 2 of the 8 filters of each of 4 workers"
        run.state, _ = run.round.finish(run.state, mask, workers)
    assert (np.asarray(masks[0]) != np.asarray(masks[1])).any()


@pytest.mark.parametrize("fused", [False, True], ids=["stepwise", "fused"])
def test_workers_differ_after_their_local_steps(fused):
    """Replicated variables that are not cast get gradients summed over the mesh: all workers would agree."""
    run = Run(config(), fused=fused)
    _, workers = run.round.train_locally(run.state)
    head = np.asarray(workers[0]["compact"].params["kernels"]["head"]["kernel"])
    for worker in range(1, 4):
        assert (head[worker] != head[0]).any()


def test_the_sum_of_deposited_slices_is_exact():
    run = Run(config())
    masks, workers = run.round.train_locally(run.state)
    compact = np.asarray(workers[0]["compact"].params["kernels"]["stage2_block2"]["conv1"]["kernel"])
    owned = [np.flatnonzero(row) for row in np.asarray(masks["stage2/block2"])]
    state, _ = run.round.finish(run.state, masks, workers)
    merged = np.asarray(state.params["stage2_block2"]["conv1"]["kernel"])
    for worker in range(4):
        np.testing.assert_array_equal(merged[..., owned[worker]], compact[worker])


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.full), 2])
def test_what_no_worker_holds_of_a_variable_of_two_groups_keeps_its_value(devices):
    run = Run(config(loft__workers=2, mesh__worker=devices), model=TwoLayers())
    before = np.asarray(run.state.params["two"]["kernel"])
    masks, workers = run.round.train_locally(run.state)
    expected, turns = before.copy(), 2 // devices
    for worker in range(2):
        one, two = (np.flatnonzero(masks[name][worker]) for name in ("one", "two"))
        kernel = workers[worker % turns]["compact"].params["kernels"]["two"]["kernel"][worker // turns]
        expected[..., one[:, None], two[None, :]] = kernel
    state, _ = run.round.finish(run.state, masks, workers)
    after = np.asarray(state.params["two"]["kernel"])
    np.testing.assert_array_equal(after, expected)
    assert (after == before).mean() == 0.5, "half of the pairs of filters are on different workers"
