"""A round by other means: plain steps from optax, and a loop over separate sub-CNNs merged with numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from helpers import tiny
from helpers.tiny import MODEL, flat
from loft_jax import draw_partition
from loft_jax.data.batches import Augmentation, normalise, worker_order
from loft_jax.loft.optimizer import learning_rate_schedule
from loft_jax.loft.split import split_groups
from loft_jax.randomness import Purpose, key_for

OPTAX_NAMES = {"sgd": ["trace"], "adam": ["mu", "nu"], "adamw": ["mu", "nu"]}


def batches_of(config, worker, round_number, data=None):
    """The batches of one worker in one round, drawn without the mesh."""
    data = data or tiny.dataset()
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


def step_programs(config, model):
    """A plain step from optax's own parts: (initialise the optimizer, one jitted step)."""
    kernels = lambda params: jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "kernel", params)  # noqa: E731
    settings, rate = config.optimizer, learning_rate_schedule(config)
    decay = optax.add_decayed_weights(settings.weight_decay, mask=kernels)
    optimizer = {
        "sgd": lambda: optax.chain(decay, optax.sgd(rate, momentum=settings.momentum)),
        "adam": lambda: optax.chain(decay, optax.adam(rate, settings.beta1, settings.beta2, settings.epsilon)),
        "adamw": lambda: optax.adamw(
            rate, settings.beta1, settings.beta2, settings.epsilon, weight_decay=settings.weight_decay, mask=kernels
        ),
    }[settings.name]()

    @jax.jit
    def step(params, batch_stats, optimizer_state, images, labels, kept=None):
        def loss_of(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 3)).mean(), updated["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        if kept is not None:
            params = jax.tree.map(jnp.multiply, params, kept)
        return params, stats, optimizer_state, loss

    return optimizer.init, step


def round_by_a_loop(config, state, round_number, model=MODEL, data=None):
    """One round as a plain loop over S separate sub-CNNs on one device, merged with numpy.

    Of an entry that several workers hold, the mean of theirs is taken; what no worker holds stays.
    """
    groups = split_groups(model, config)
    split = [group for group in groups if group.partitioned]
    masks = draw_partition(key_for(config.seed, Purpose.PARTITION, round_number), groups, config.loft.workers)
    workers = config.loft.workers
    model = model.with_widths({group.name: group.width // workers for group in split})
    initialise, step = step_programs(config, model)
    names = ["params", "batch_stats", *config.optimizer.moments]
    all_kept = jax.device_get(state.get("kept"))
    state = {name: jax.device_get(state[name]) for name in names if state.get(name)}
    total, holders = jax.tree.map(np.zeros_like, state), jax.tree.map(np.zeros_like, state)
    losses = []
    for worker in range(workers):
        owned = {name: np.flatnonzero(mask[worker]) for name, mask in masks.items()}

        def held(key_path, leaf, owned=owned):
            path = "/".join(key.key for key in key_path)
            path = path.replace("momentum/", "params/").replace("second_moment/", "params/")
            return np.ix_(*_kept_entries(split, path, leaf.shape, owned))

        index = jax.tree_util.tree_map_with_path(held, state)
        compact = jax.tree.map(lambda leaf, rows: leaf[rows], state, index)
        kept = None if all_kept is None else jax.tree.map(lambda leaf, rows: leaf[rows], all_kept, index["params"])
        optimizer_names = dict(zip(config.optimizer.moments, OPTAX_NAMES[config.optimizer.name], strict=True))
        optimizer_state = optax.tree_utils.tree_set(
            initialise(compact["params"]),
            count=jnp.int32(round_number * config.loft.local_steps),
            **{own: compact[name] for name, own in optimizer_names.items()},
        )
        params, stats = compact["params"], compact.get("batch_stats", {})
        for images, labels in batches_of(config, worker, round_number, data):
            params, stats, optimizer_state, loss = step(params, stats, optimizer_state, images, labels, kept)
            losses.append(float(loss))
        trained = {"params": params, "batch_stats": stats}
        trained |= {name: optax.tree_utils.tree_get(optimizer_state, own) for name, own in optimizer_names.items()}
        for name in state:
            jax.tree.map(_add_at, total[name], index[name], trained[name])
            jax.tree.map(_add_at, holders[name], index[name], jax.tree.map(jnp.ones_like, trained[name]))
    merged = jax.tree.map(lambda t, n, old: np.where(n > 0, t / np.maximum(n, 1), old), total, holders, state)
    return merged, np.mean(losses)


def _kept_entries(groups, path, shape, owned):
    """Entries of every axis of a variable that a worker holds who owns these filters of each group."""
    gone = [np.zeros(length, bool) for length in shape]
    for group in groups:
        for axis, place in group.places(path) if path in group.axes else ():
            others = np.setdiff1d(np.arange(group.width), owned[group.name])
            gone[axis][others if place is None else place.entries(group.width)[others].ravel()] = True
    return [np.flatnonzero(~axis) for axis in gone]


def _add_at(into, rows, leaf):
    into[rows] += np.asarray(leaf)


def assert_close(state, expected, rtol=2e-5, atol=2e-6):
    one, other = flat({k: state[k] for k in expected}), flat(expected)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=rtol, atol=atol, err_msg=path)
