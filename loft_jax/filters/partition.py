"""Who owns which filter: draw or deal a partition, extract a compact sub-CNN, merge it back.

All are pure functions of the models' declaration.

"Variables" are nested dicts of arrays, collection first: {"params": ..., "batch_stats": ...}. Any further collection
whose paths the groups name (momentum, say) is sliced the same way; a collection that is absent is passed over.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax.filters.arrays import flatten_paths, native, unflatten_paths
from loft_jax.filters.groups import FilterGroup, filter_axes

Variables = Mapping[str, Any]
Indices = Mapping[str, Any]


def draw_partition(key: jax.Array, groups: Sequence[FilterGroup], workers: int) -> dict[str, jax.Array]:
    """A uniformly random partition of every group that is `partitioned` (paper, step 1).

    Args:
      key: JAX PRNG key; the partition is a pure function of it.
      groups: the model's filter groups.
      workers: number S of workers.

    Returns:
      Group name -> bool [S, n]. Row s is what worker s owns: exactly n/S filters; the rows are a disjoint cover.

    Raises:
      ValueError: S does not divide the width of a partitioned group.
    """
    split = tuple(group for group in groups if group.partitioned)
    for group in split:
        if workers < 1 or group.width % workers:
            raise ValueError(f"workers={workers} must divide the width {group.width} of filter group {group.name!r}")
    return _draw(key, split, workers)


def deal_partition(key: jax.Array, owned: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The partition that follows another under `loft.sync: exchange`: every worker deals its filters to all workers.

    Each worker's k = n/S filters are shuffled and dealt in S hands, so that every filter is equally likely to go to any
    worker and every ordered pair of workers exchanges the same number, k/S. Where S does not divide k, hands differ by
    one filter, and chance decides which pairs exchange the larger ones.

    Args:
      key: JAX PRNG key; the new partition is a pure function of it and the old one.
      owned: group name -> bool [S, n], as `draw_partition` gives it: row s is what worker s owns.

    Returns:
      Group name -> bool [S, n], a partition again.

    Raises:
      ValueError: a group's rows are no disjoint cover of its filters in equal parts.
    """
    for name, masks in owned.items():
        if isinstance(masks, jax.core.Tracer):
            continue
        masks = np.asarray(masks)
        even = masks.ndim == 2 and masks.dtype == bool and (masks.sum(axis=0) == 1).all()
        if not even or len(set(masks.sum(axis=1).tolist())) != 1:
            raise ValueError(
                f"filter group {name!r}: rows must own equally many filters, and each filter be owned once"
            )
    return _deal(key, dict(owned))


def extract(variables: Variables, groups: Sequence[FilterGroup], owned: Indices) -> dict[str, Any]:
    """The compact variables that hold only the owned filters.

    Args:
      variables: full variables, numpy or JAX arrays.
      groups: the model's filter groups.
      owned: group name -> [k] ascending filter indices; groups that are absent keep their full width.

    Returns:
      Variables of the same structure, each axis of a group in `owned` of length k; a variable that belongs to two such
      groups is sliced along both axes.

    Raises:
      ValueError: unknown group, indices that do not ascend or are out of range, or a declared variable is missing or
        not as wide as its group.
    """
    groups, variables = tuple(groups), native(variables)
    return _extract(variables, groups, _checked(variables, groups, owned))


def merge(variables: Variables, groups: Sequence[FilterGroup], owned: Indices, compact: Variables) -> dict[str, Any]:
    """Write compact variables back into the full ones: the inverse of `extract`.

    Args:
      variables: full variables.
      groups, owned: as given to `extract`.
      compact: what `extract` returned, or the same after training.

    Returns:
      Full variables: owned slices from `compact`, the rest of these variables as it was, and shared variables (those no
      group in `owned` touches) from `compact`.

    Raises:
      ValueError: as `extract`, or the compact variables are not those that it would return.
    """
    groups, variables, compact = tuple(groups), native(variables), native(compact)
    indices = _checked(variables, groups, owned)
    _check_compact(jax.eval_shape(partial(_extract, groups=groups), variables, owned=indices), compact)
    return _merge(variables, groups, indices, compact)


def prune(variables: Variables, groups: Sequence[FilterGroup], kept: Indices) -> dict[str, Any]:
    """The compact variables of a ticket: `extract`, under its field name. `kept`: group name -> [k] indices."""
    return extract(variables, groups, kept)


def ascending(mask: jax.Array, size: int) -> jax.Array:
    """Where a mask [..., n] is true, in ascending order: int32 [..., size]; n fills what is left."""
    n = mask.shape[-1]
    return jnp.sort(jnp.where(mask, jnp.arange(n, dtype=jnp.int32), n), axis=-1)[..., :size]


def owned_indices(masks: Mapping[str, jax.Array], widths: Mapping[str, int], worker: Any) -> dict[str, jax.Array]:
    """One worker's row of a partition as ascending indices.

    Args:
      masks: group name -> bool [rows, n].
      widths: group name -> k, the number of true entries of each row; static, so that the result has a static shape.
      worker: row to read; may be traced.

    Returns:
      Group name -> int32 [k].
    """
    return {name: ascending(mask[worker], widths[name]) for name, mask in masks.items()}


@partial(jax.jit, static_argnames=("groups", "workers"))
def _draw(key: jax.Array, groups: tuple[FilterGroup, ...], workers: int) -> dict[str, jax.Array]:
    masks = {}
    for i, group in enumerate(groups):
        hands = jax.random.permutation(jax.random.fold_in(key, i), group.width).reshape(workers, -1)
        masks[group.name] = jnp.zeros((workers, group.width), bool).at[jnp.arange(workers)[:, None], hands].set(True)
    return masks


@jax.jit
def _deal(key: jax.Array, owned: dict[str, jax.Array]) -> dict[str, jax.Array]:
    dealt = {}
    for i, (name, masks) in enumerate(sorted(owned.items())):
        workers, n = masks.shape
        even, extra = divmod(n // workers, workers)
        shuffle, source, target = jax.random.split(jax.random.fold_in(key, i), 3)
        filters = jax.random.permutation(shuffle, ascending(masks, n // workers), axis=1, independent=True)
        # Left over are `extra` filters of each worker. They go round a circle on which chance has placed the workers:
        # each gives to `extra` others and gets from as many.
        places = jax.random.permutation(source, workers)[:, None] + jnp.arange(extra)
        others = jax.random.permutation(target, workers)[places % workers]
        hands = jnp.broadcast_to(jnp.repeat(jnp.arange(workers), even), (workers, workers * even))
        receivers = jnp.concatenate([hands, others], axis=1)
        dealt[name] = jnp.zeros((workers, n), bool).at[receivers, filters].set(True)
    return dealt


@partial(jax.jit, static_argnames="groups")
def _extract(variables: Variables, groups: tuple[FilterGroup, ...], owned: Indices) -> dict[str, Any]:
    flat = flatten_paths(variables)
    for path, pairs in _sliced_axes(flat, groups, owned).items():
        for axis, name in pairs:
            flat[path] = jnp.take(flat[path], owned[name], axis=axis, unique_indices=True, indices_are_sorted=True)
    return unflatten_paths(flat)


@partial(jax.jit, static_argnames="groups")
def _merge(variables: Variables, groups: tuple[FilterGroup, ...], owned: Indices, compact: Variables) -> dict[str, Any]:
    flat, merged = flatten_paths(variables), flatten_paths(compact)
    for path, pairs in _sliced_axes(flat, groups, owned).items():
        indices = [slice(None)] * flat[path].ndim
        for axis, name in pairs:
            indices[axis] = owned[name]
        if len(pairs) > 1:
            full = [
                jnp.arange(n) if isinstance(i, slice) else i for i, n in zip(indices, flat[path].shape, strict=True)
            ]
            indices = jnp.ix_(*full)
        slots = flat[path].at[tuple(indices)]
        merged[path] = slots.set(merged[path], unique_indices=True, indices_are_sorted=len(pairs) == 1)
    return unflatten_paths(merged)


def _sliced_axes(
    flat: Mapping[str, Any], groups: tuple[FilterGroup, ...], owned: Indices
) -> dict[str, list[tuple[int, str]]]:
    return filter_axes_present(flat, [group for group in groups if group.name in owned])


def filter_axes_present(paths: Mapping[str, Any], groups: Sequence[FilterGroup]) -> dict[str, list[tuple[int, str]]]:
    """`filter_axes`, for those variables that are there."""
    return {path: pairs for path, pairs in filter_axes(groups).items() if path in paths}


def _checked(variables: Variables, groups: tuple[FilterGroup, ...], owned: Indices) -> dict[str, jax.Array]:
    by_name = {group.name: group for group in groups}
    paths = flatten_paths(variables)
    for name, indices in owned.items():
        if name not in by_name:
            raise ValueError(f"no such filter group: {name!r}; known: {', '.join(by_name)}")
        missing = [p for p in by_name[name].axes if p.split("/")[0] in variables and p not in paths]
        if missing:
            raise ValueError(f"filter group {name!r} declares {missing[0]!r}, which is not among the variables")
        for path, axis in by_name[name].axes.items():
            shape = np.shape(paths[path]) if path in paths else None
            if shape is not None and (len(shape) <= axis or shape[axis] != by_name[name].width):
                raise ValueError(
                    f"filter group {name!r} has {by_name[name].width} filters along axis {axis} of {path!r}, whose "
                    f"shape is {shape}; give the full variables"
                )
        if isinstance(indices, jax.core.Tracer):
            continue
        indices = np.asarray(indices)
        if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(f"filter group {name!r}: indices must be a non-empty 1-D integer array, not {indices!r}")
        if indices[0] < 0 or indices[-1] >= by_name[name].width or (np.diff(indices) <= 0).any():
            raise ValueError(f"filter group {name!r}: indices must ascend within [0, {by_name[name].width})")
    return {name: jnp.asarray(indices) for name, indices in owned.items()}


def _check_compact(expected: Variables, compact: Variables) -> None:
    wanted, given = (flatten_paths(tree) for tree in (expected, compact))
    for path in sorted(wanted.keys() | given.keys()):
        there = np.shape(given[path]) if path in given else "missing"
        right = wanted[path].shape if path in wanted else "no variable"
        if there != right:
            raise ValueError(f"compact variables: {path!r} is {there}, and must be {right} for the owned filters")
