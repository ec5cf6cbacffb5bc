"""A narrow network against the full one whose removed filters are silenced where they are read."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax import extract
from loft_jax.filters import flatten_paths, unflatten_paths

_RANGES = {"scale": (0.5, 1.5), "bias": (-0.5, 0.5), "mean": (-0.5, 0.5), "var": (0.5, 2)}


def filled(network, seed=0):
    """Random variables: no scale is 1, no bias or mean 0. Kernels keep the size of what passes through."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((2, *network.image_shape), jnp.float32)
    flat = flatten_paths(jax.eval_shape(network.init, jax.random.key(0), images))
    for path, leaf in flat.items():
        last = path.split("/")[-1]
        if last in _RANGES:
            values = rng.uniform(*_RANGES[last], leaf.shape)
        else:
            summed = leaf.shape[:-1] if leaf.ndim != 5 else leaf.shape[1:-1]  # Five axes: layers of nn.scan.
            values = rng.normal(size=leaf.shape) * np.sqrt(1.5 / np.prod(summed))
        flat[path] = jnp.asarray(values, jnp.float32)
    return unflatten_paths(flat)


def entries(group, path, filters):
    """Axis -> entries of these filters, for a variable that a group touches."""
    found = {}
    for axis, place in group.places(path):
        rows = np.asarray(filters) if place is None else place.entries(group.width)[filters].ravel()
        found[axis] = np.concatenate([found[axis], rows]) if axis in found else rows
    return found


def silence(variables, groups, removed, factor=0):
    """Set to zero, or multiply by a factor, what kernels multiply the removed filters by.

    Kernels have the axis that they sum over last but one. A transposed convolution that is stored as its convolution
    ("turned") has it last, a layer of two axes ("pairs") first, and one that reads both ("both") has two.

    Not what makes the filters: zero is not silent after a sigmoid.
    """
    flat = {path: np.array(leaf) for path, leaf in flatten_paths(variables).items()}
    for group in groups:
        readers = 0
        for path in group.axes:
            there = entries(group, path, removed[group.name])
            axes = {"turned": [-1], "pairs": [0], "both": [0, 1]}.get(path.split("/")[-2], [-2])
            for axis in [axis % flat[path].ndim for axis in axes if path.endswith("/kernel")]:
                if axis in there:
                    flat[path][(slice(None),) * axis + (there[axis],)] *= factor
                    readers += 1
        assert readers, f"nothing reads {group.name}"
    return unflatten_paths({path: jnp.asarray(leaf) for path, leaf in flat.items()})


def assert_narrow_equals_silenced(network, batch=4, share=0.5, train=(False, True), tolerance=1e-5, dtype=jnp.float32):
    """Compare logits and updated statistics. In float64 the rounding of fifty layers is no matter."""
    network.filter_groups()  # Traced in float32, as every network is.
    if dtype != jnp.float32:
        network = network.clone(dtype=jnp.dtype(dtype), source=network.source.with_dtype(jnp.dtype(dtype)))
    with jax.enable_x64(dtype != jnp.float32):
        _compare(network, batch, share, train, tolerance)


def _compare(network, batch, share, train, tolerance):
    groups, rng = network.filter_groups(), np.random.default_rng(1)
    assert groups
    variables = filled(network)
    kept = {g.name: np.sort(rng.permutation(g.width)[: max(1, int(g.width * share))]) for g in groups}
    removed = {g.name: np.setdiff1d(np.arange(g.width), kept[g.name]) for g in groups}
    silenced = silence(variables, groups, removed)
    narrow = network.with_widths({name: len(rows) for name, rows in kept.items()})
    compact = extract(variables, groups, kept)
    images = jnp.asarray(rng.normal(size=(batch, *network.image_shape)), jnp.float32)
    rngs = {"dropout": jax.random.key(0)}
    for mode in train:
        apply = {
            name: jax.jit(lambda v, x, n=net, mode=mode: n.apply(v, x, mode, mutable=["batch_stats"], rngs=rngs))
            for name, net in (("full", network), ("narrow", narrow))
        }
        expected, statistics = apply["full"](silenced, images)
        found, updated = apply["narrow"](compact, images)
        untouched, _ = apply["full"](variables, images)
        assert np.isfinite(expected).all()
        assert np.abs(untouched - expected).max() > 1e-3 * np.abs(expected).max(), "nothing was silenced"
        assert_relative(found, expected, tolerance)
        assert flatten_paths(updated).keys() == flatten_paths(statistics).keys()
        if mode and flatten_paths(statistics):
            touching = only(groups, statistics)
            wanted = flatten_paths(extract(statistics, touching, {group.name: kept[group.name] for group in touching}))
            for path, leaf in flatten_paths(updated).items():
                assert_relative(leaf, wanted[path], tolerance, path)


def only(groups, tree):
    """The groups with what they touch in a tree, without those that touch nothing there."""
    there = flatten_paths(tree)
    cut = [replace(g, axes={p: a for p, a in g.axes.items() if p in there}, kernel=g.kernel) for g in groups]
    return tuple(group for group in cut if group.axes)


def assert_relative(found, expected, tolerance, name=""):
    assert found.shape == expected.shape, name
    error = np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(expected).max()
    assert error <= tolerance, f"{name}: relative error {error:.2g}"
