"""Who owns which filter: draw or deal a partition, extract a compact sub-CNN, merge it back.

All functions here are pure functions of the declared filter groups.

"Variables" are nested dicts of arrays, collection first: {"params": ..., "batch_stats": ...}. Any further collection
whose paths the groups name (momentum, for example) is sliced the same way; a collection that is absent is skipped.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax.filters.arrays import flatten_paths, native, unflatten_paths
from loft_jax.filters.cuts import Cut, filter_cuts
from loft_jax.filters.groups import FilterGroup

Variables = Mapping[str, Any]
Indices = Mapping[str, Any]


def draw_partition(key: jax.Array, groups: Sequence[FilterGroup], workers: int) -> dict[str, jax.Array]:
    """Draw a uniformly random partition of every group that is `partitioned` (paper, step 1).

    Args:
      key: JAX PRNG key; the partition is a pure function of it.
      groups: the model's filter groups.
      workers: number S of workers.

    Returns:
      Group name -> bool [S, n]. Row s is what worker s owns, exactly n/S filters; each filter has exactly one owner.

    Raises:
      ValueError: S does not divide the width of a partitioned group.
    """
    split = tuple(group for group in groups if group.partitioned)
    for group in split:
        if workers < 1 or group.width % workers:
            raise ValueError(f"workers={workers} must divide the width {group.width} of filter group {group.name!r}")
    return _draw(key, split, workers)


def draw_ranked_partition(
    key: jax.Array, groups: Sequence[FilterGroup], workers: int, scores: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Draw a partition in which every worker gets as many strong and weak filters as any other.

    The filters of a group, by descending score, are cut into runs of S, each dealt at random, one to each worker.

    Args:
      key, groups, workers: as for `draw_partition`; S divides the width of every group that is split.
      scores: group name -> float [n], as `filter_scores` returns them.

    Returns:
      Group name -> bool [S, n], as `draw_partition` returns it.
    """
    masks = {}
    for i, group in enumerate(group for group in groups if group.partitioned):
        runs = jnp.argsort(-scores[group.name]).reshape(-1, workers)
        dealt = jax.random.permutation(jax.random.fold_in(key, i), runs, axis=1, independent=True)
        masks[group.name] = jnp.zeros((workers, group.width), bool).at[jnp.arange(workers), dealt].set(True)
    return masks


def deal_partition(key: jax.Array, owned: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Make the next partition from the last one (`loft.sync: exchange`): every worker deals its filters to all workers.

    Each worker's k = n/S filters are shuffled and dealt in S shares, so that every filter is equally likely to go to
    any worker and every ordered pair of workers exchanges the same number, k/S. Where S does not divide k, shares
    differ by one filter, and which pairs exchange the larger shares is random.

    Args:
      key: JAX PRNG key; the new partition is a pure function of the key and the old partition.
      owned: group name -> bool [S, n], as `draw_partition` returns it: row s is what worker s owns.

    Returns:
      Group name -> bool [S, n], a partition again.

    Raises:
      ValueError: the rows of a group do not own equally many filters, or a filter has no owner or several.
    """
    for name, masks in owned.items():
        if isinstance(masks, jax.core.Tracer):
            continue
        masks = np.asarray(masks)
        even = masks.ndim == 2 and masks.dtype == bool and (masks.sum(axis=0) == 1).all()
        if not even or len(set(masks.sum(axis=1).tolist())) != 1:
            raise ValueError(
                f"filter group {name!r}: rows must own equally many filters, and each filter must have one owner"
            )
    return _deal(key, dict(owned))


def extract(variables: Variables, groups: Sequence[FilterGroup], owned: Indices) -> dict[str, Any]:
    """Return the compact variables, which hold only the owned filters.

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
    return _extract(variables, groups, _check_indices(variables, groups, owned))


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
      ValueError: as `extract`, or the compact variables do not have the paths and shapes that it would return.
    """
    groups, variables, compact = tuple(groups), native(variables), native(compact)
    indices = _check_indices(variables, groups, owned)
    _check_compact(jax.eval_shape(partial(_extract, groups=groups), variables, owned=indices), compact)
    return _merge(variables, groups, indices, compact)


def prune(variables: Variables, groups: Sequence[FilterGroup], kept: Indices) -> dict[str, Any]:
    """Return the compact variables of a ticket: `extract` by the name that pruning has. `kept`: group name -> [k]."""
    return extract(variables, groups, kept)


def ascending_indices(mask: jax.Array, size: int) -> jax.Array:
    """Return the indices at which a mask [..., n] is true, ascending: int32 [..., size]; unused places hold n."""
    n = mask.shape[-1]
    return jnp.sort(jnp.where(mask, jnp.arange(n, dtype=jnp.int32), n), axis=-1)[..., :size]


def owned_indices(masks: Mapping[str, jax.Array], widths: Mapping[str, int], worker: Any) -> dict[str, jax.Array]:
    """Return one worker's row of a partition as ascending indices.

    Args:
      masks: group name -> bool [rows, n].
      widths: group name -> k, the number of true entries of each row; static, so that the result has a static shape.
      worker: row to read; may be traced.

    Returns:
      Group name -> int32 [k].
    """
    return {name: ascending_indices(mask[worker], widths[name]) for name, mask in masks.items()}


@partial(jax.jit, static_argnames=("groups", "workers"))
def _draw(key: jax.Array, groups: tuple[FilterGroup, ...], workers: int) -> dict[str, jax.Array]:
    masks = {}
    for i, group in enumerate(groups):
        shares = jax.random.permutation(jax.random.fold_in(key, i), group.width).reshape(workers, -1)
        masks[group.name] = jnp.zeros((workers, group.width), bool).at[jnp.arange(workers)[:, None], shares].set(True)
    return masks


@jax.jit
def _deal(key: jax.Array, owned: dict[str, jax.Array]) -> dict[str, jax.Array]:
    dealt = {}
    for i, (name, masks) in enumerate(sorted(owned.items())):
        workers, n = masks.shape
        even, extra = divmod(n // workers, workers)
        shuffle, source, target = jax.random.split(jax.random.fold_in(key, i), 3)
        filters = jax.random.permutation(shuffle, ascending_indices(masks, n // workers), axis=1, independent=True)
        # `extra` filters of each worker are left over. Givers and receivers are each put on a circle in random order; a
        # giver sends one filter to each of the `extra` receivers from its own place on. So every worker gets `extra`.
        places = jax.random.permutation(source, workers)[:, None] + jnp.arange(extra)
        others = jax.random.permutation(target, workers)[places % workers]
        equal = jnp.broadcast_to(jnp.repeat(jnp.arange(workers), even), (workers, workers * even))
        receivers = jnp.concatenate([equal, others], axis=1)
        dealt[name] = jnp.zeros((workers, n), bool).at[receivers, filters].set(True)
    return dealt


@partial(jax.jit, static_argnames="groups")
def _extract(variables: Variables, groups: tuple[FilterGroup, ...], owned: Indices) -> dict[str, Any]:
    flat = flatten_paths(variables)
    for path, cuts in _cuts_of_owned(flat, groups, owned).items():
        for cut in cuts:
            entries = cut.entries(flat[path].shape[cut.axis], owned)
            flat[path] = jnp.take(flat[path], entries, axis=cut.axis, unique_indices=True, indices_are_sorted=True)
    return unflatten_paths(flat)


@partial(jax.jit, static_argnames="groups")
def _merge(variables: Variables, groups: tuple[FilterGroup, ...], owned: Indices, compact: Variables) -> dict[str, Any]:
    flat, merged = flatten_paths(variables), flatten_paths(compact)
    for path, cuts in _cuts_of_owned(flat, groups, owned).items():
        shape = flat[path].shape
        indices: list[Any] = [slice(None)] * len(shape)
        for cut in cuts:
            indices[cut.axis] = cut.entries(shape[cut.axis], owned)
        if len(cuts) > 1:
            full = [jnp.arange(n) if isinstance(i, slice) else i for i, n in zip(indices, shape, strict=True)]
            indices = list(jnp.ix_(*full))
        target = flat[path].at[tuple(indices)]
        merged[path] = target.set(merged[path], unique_indices=True, indices_are_sorted=len(cuts) == 1)
    return unflatten_paths(merged)


def _cuts_of_owned(
    flat: Mapping[str, Any], groups: tuple[FilterGroup, ...], owned: Indices
) -> dict[str, tuple[Cut, ...]]:
    cuts = filter_cuts(group for group in groups if group.name in owned)
    return {path: of_variable for path, of_variable in cuts.items() if path in flat}


def _check_indices(variables: Variables, groups: tuple[FilterGroup, ...], owned: Indices) -> dict[str, jax.Array]:
    by_name = {group.name: group for group in groups}
    paths = flatten_paths(variables)
    for name, indices in owned.items():
        if name not in by_name:
            raise ValueError(f"no such filter group: {name!r}; known: {', '.join(by_name)}")
        missing = [p for p in by_name[name].axes if p.split("/")[0] in variables and p not in paths]
        if missing:
            raise ValueError(f"filter group {name!r} declares {missing[0]!r}, which is not among the variables")
        if isinstance(indices, jax.core.Tracer):
            continue
        indices = np.asarray(indices)
        if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(f"filter group {name!r}: indices must be a non-empty 1-D integer array, not {indices!r}")
        if indices[0] < 0 or indices[-1] >= by_name[name].width or (np.diff(indices) <= 0).any():
            raise ValueError(f"filter group {name!r}: indices must ascend within [0, {by_name[name].width})")
    for path, cuts in _cuts_of_owned(paths, groups, owned).items():
        for cut in cuts:
            try:
                cut.check(path, np.shape(paths[path]))
            except ValueError as error:
                raise ValueError(f"{error}; give the full variables") from None
    return {name: jnp.asarray(indices) for name, indices in owned.items()}


def _check_compact(expected: Variables, compact: Variables) -> None:
    wanted, given = (flatten_paths(tree) for tree in (expected, compact))
    for path in sorted(wanted.keys() | given.keys()):
        there = np.shape(given[path]) if path in given else "missing"
        right = wanted[path].shape if path in wanted else "absent"
        if there != right:
            raise ValueError(f"compact variables: {path!r} is {there}, but must be {right} for the owned filters")
