"""A round against something simpler: plain SGD, a loop over separate sub-CNNs, other numbers of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import MODEL, Run, config, flat
from two_layers import TwoLayers

from loft_jax import draw_partition
from loft_jax.data.batches import Augmentation, normalise, worker_order
from loft_jax.mesh import WORKER
from loft_jax.optimizer import learning_rate_schedule
from loft_jax.randomness import Purpose, key_for
from loft_jax.sub_cnn import split_groups


def batches_of(config, worker, round_number):
    """The batches of one worker in one round, drawn without the mesh."""
    data = tiny.dataset()
    mean, std = data.channel_statistics
    steps, size = config.loft.local_steps, config.data.batch_size
    order = worker_order(
        key_for(config.seed, Purpose.ORDER),
        jnp.int32(worker),
        jnp.int32(round_number * steps * size),
        steps * size,
        len(data.train_labels),
        config.loft.workers,
        config.data.split,
    )
    augmentation = Augmentation(data.crop_padding, data.flip)
    for i in range(steps):
        indices = order[i * size : (i + 1) * size]
        drawn = augmentation.draw(key_for(config.seed, Purpose.AUGMENTATION, worker, round_number * steps + i), size)
        images = augmentation.apply(jnp.asarray(data.train_images)[indices], drawn)
        yield normalise(images, mean, std), jnp.asarray(data.train_labels)[indices]


def sgd_programs(config, model):
    """Plain SGD from optax's own parts: (initialise the optimizer, one jitted step)."""
    kernels = lambda params: jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "kernel", params)  # noqa: E731
    optimizer = optax.chain(
        optax.add_decayed_weights(config.optimizer.weight_decay, mask=kernels),
        optax.sgd(learning_rate_schedule(config), momentum=config.optimizer.momentum),
    )

    @jax.jit
    def step(params, batch_stats, optimizer_state, images, labels):
        def loss_of(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 3)).mean(), updated["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), stats, optimizer_state, loss

    return optimizer.init, step


def round_by_a_loop(config, state, round_number):
    """One round as a plain loop over S separate sub-CNNs on one device, merged with numpy."""
    groups = split_groups(MODEL, config)
    split = [group for group in groups if group.partitioned]
    masks = draw_partition(key_for(config.seed, Purpose.PARTITION, round_number), groups, config.loft.workers)
    workers = config.loft.workers
    model = MODEL.with_widths({group.name: group.width // workers for group in split})
    initialise, step = sgd_programs(config, model)
    axes = {}
    for group in split:
        for path, axis in group.axes.items():
            axes[path] = (axis, group.name)
            axes[path.replace("params/", "momentum/")] = (axis, group.name)

    def path_of(key_path):
        return "/".join(k.key for k in key_path)

    state = {name: jax.device_get(state[name]) for name in ("params", "batch_stats", "momentum")}
    total = jax.tree.map(np.zeros_like, state)
    losses = []
    for worker in range(workers):
        owned = {name: np.flatnonzero(mask[worker]) for name, mask in masks.items()}

        def cut(key_path, leaf, owned=owned):
            axis, name = axes.get(path_of(key_path), (None, None))
            return leaf if axis is None else np.take(leaf, owned[name], axis=axis)

        compact = jax.tree_util.tree_map_with_path(cut, state)
        optimizer_state = optax.tree_utils.tree_set(
            initialise(compact["params"]),
            trace=compact["momentum"],
            count=jnp.int32(round_number * config.loft.local_steps),
        )
        params, stats = compact["params"], compact["batch_stats"]
        for images, labels in batches_of(config, worker, round_number):
            params, stats, optimizer_state, loss = step(params, stats, optimizer_state, images, labels)
            losses.append(float(loss))
        trained = {"params": params, "batch_stats": stats}
        trained["momentum"] = optax.tree_utils.tree_get(optimizer_state, "trace")

        def deposit(key_path, into, leaf, owned=owned):
            axis, name = axes.get(path_of(key_path), (None, None))
            if axis is None:
                return into + np.asarray(leaf) / workers
            into = into.copy()
            into[(slice(None),) * axis + (owned[name],)] = leaf
            return into

        total = jax.tree_util.tree_map_with_path(deposit, total, trained)
    return total, np.mean(losses)


def assert_close(state, expected, rtol=2e-5, atol=2e-6):
    one, other = flat({k: state[k] for k in expected}), flat(expected)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=rtol, atol=atol, err_msg=path)


@pytest.mark.compat
@pytest.mark.parametrize("fused", [False, True], ids=["stepwise", "fused"])
def test_a_round_equals_a_plain_loop_over_separate_sub_cnns(fused):
    settings = config(mesh__cpu_devices=4)
    run = Run(settings, fused=fused)
    start = run.rounds(1)  # A second round starts from momentum and statistics that are not zero.
    expected, loss = round_by_a_loop(settings, start, 1)
    assert_close(run.rounds(1), expected)
    np.testing.assert_allclose(float(run.loss), loss, rtol=1e-5)


@pytest.mark.compat
def test_one_worker_is_bit_equal_to_plain_sgd():
    settings = config(loft__workers=1)
    run = Run(settings)
    params, stats = (jax.device_get(run.state[name]) for name in ("params", "batch_stats"))
    after = run.rounds(3)
    initialise, step = sgd_programs(settings, MODEL)
    optimizer_state = initialise(params)
    for round_number in range(3):
        for images, labels in batches_of(settings, 0, round_number):
            params, stats, optimizer_state, _ = step(params, stats, optimizer_state, images, labels)
    momentum = optax.tree_utils.tree_get(optimizer_state, "trace")
    expected = flat({"params": params, "batch_stats": stats, "momentum": momentum})
    for path, leaf in flat({k: after[k] for k in ("params", "batch_stats", "momentum")}).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


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


@pytest.mark.parametrize("fused", [False, True], ids=["stepwise", "fused"])
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
        mask, workers = run.round.train_locally(run.state, run.data)
        masks.append(mask["stage2/block2"])
        assert mask.keys() == {"stage2/block2"}
        assert mask["stage2/block2"].sharding.spec == jax.sharding.PartitionSpec(WORKER)
        kernel = workers[0]["compact"]["params"]["stage2_block2"]["conv1"]["kernel"]
        assert kernel.shape == (4, 3, 3, 8, 2), "a device holds 2 of the 8 filters of each of 4 workers"
        run.state, _ = run.round.sync(run.state, mask, workers)
    assert (np.asarray(masks[0]) != np.asarray(masks[1])).any()


@pytest.mark.parametrize("fused", [False, True], ids=["stepwise", "fused"])
def test_workers_differ_after_their_local_steps(fused):
    """Replicated variables that are not cast get gradients summed over the mesh: all workers would agree."""
    run = Run(config(), fused=fused)
    _, workers = run.round.train_locally(run.state, run.data)
    head = np.asarray(workers[0]["compact"]["params"]["head"]["kernel"])
    for worker in range(1, 4):
        assert (head[worker] != head[0]).any()


def test_the_sum_of_deposited_slices_is_exact():
    run = Run(config())
    masks, workers = run.round.train_locally(run.state, run.data)
    compact = np.asarray(workers[0]["compact"]["params"]["stage2_block2"]["conv1"]["kernel"])
    owned = [np.flatnonzero(row) for row in np.asarray(masks["stage2/block2"])]
    state, _ = run.round.sync(run.state, masks, workers)
    merged = np.asarray(state["params"]["stage2_block2"]["conv1"]["kernel"])
    for worker in range(4):
        np.testing.assert_array_equal(merged[..., owned[worker]], compact[worker])


@pytest.mark.parametrize("devices", [1, 2])
def test_what_no_worker_holds_of_a_variable_of_two_groups_keeps_its_value(devices):
    run = Run(config(loft__workers=2, mesh__worker=devices), model=TwoLayers())
    before = np.asarray(run.state["params"]["two"]["kernel"])
    masks, workers = run.round.train_locally(run.state, run.data)
    expected, slots = before.copy(), 2 // devices
    for worker in range(2):
        one, two = (np.flatnonzero(masks[name][worker]) for name in ("one", "two"))
        kernel = workers[worker % slots]["compact"]["params"]["two"]["kernel"][worker // slots]
        expected[..., one[:, None], two[None, :]] = kernel
    state, _ = run.round.sync(run.state, masks, workers)
    after = np.asarray(state["params"]["two"]["kernel"])
    np.testing.assert_array_equal(after, expected)
    assert (after == before).mean() == 0.5, "half of the pairs of filters are on different workers"
