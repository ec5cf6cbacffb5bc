"""Variables that are summed over the workers: owned entries are written into zeros, and what is shared is averaged.

A kernel between two split layers is cut along both axes. Its workers hold S blocks, together 1/S of it. So the blocks
are summed, side by side, instead of the kernel, and every device writes them to their places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax.devices import WORKER
from loft_jax.filters import (
    Cut,
    FilterGroup,
    extract,
    filter_cuts,
    flatten_paths,
    merge,
    owned_indices,
    unflatten_paths,
)

Tree = dict[str, Any]
Rows = Mapping[str, jax.Array]


class Summed:
    """Takes the workers' shares from full variables that every device holds, and brings them together again.

    Attributes:
      groups: the split groups, as far as they touch these variables.
    """

    def __init__(self, groups: Sequence[FilterGroup], workers: int):
        self.groups, self._workers = tuple(groups), workers
        self._shares = {group.name: group.width // workers for group in self.groups}
        self._widths = {group.name: group.width for group in self.groups}
        self._cuts = filter_cuts(self.groups)
        self._several = {path: cuts for path, cuts in self._cuts.items() if len(cuts) > 1}
        self._blocks = {path for path, cuts in self._several.items() if all(cut.whole for cut in cuts)}

    def take(self, variables: Tree, rows: Rows, turn: Any) -> Tree:
        """Return a worker's compact variables.

        Args:
          variables: full variables, nested dicts.
          rows: group name -> bool [T, n], what this device's workers own.
          turn: which of them.
        """
        return extract(variables, self.groups, owned_indices(rows, self._shares, turn))

    def take_kept(self, kept: Any, rows: Rows, turn: Any) -> Any:
        """Return a worker's part of `State.kept`, from that of the full state. Other arguments as for `take`."""
        return None if kept is None else self.take({"params": kept}, rows, turn)["params"]

    def combine(self, before: Tree, rows: Rows, compacts: Sequence[Tree]) -> Tree:
        """Inside shard_map: return the full variables from the compact ones of this device's workers.

        Entries that one worker holds are exact; those that several hold are averaged; those that none holds keep their
        value. Arguments as for `take`, and results as nested dicts.
        """
        old, flat = flatten_paths(before), [flatten_paths(compact) for compact in compacts]
        blocks = {path: jnp.stack([own[path] for own in flat]) for path in old if path in self._blocks}
        groups = self._groups_of_several(old)
        everyones = {name: rows[name].astype(jnp.int32) for name in groups}
        side_by_side = jax.tree.map(self._lay_side_by_side, (blocks, everyones))
        (blocks, everyones), total = jax.lax.psum((side_by_side, self._deposit(old, rows, flat)), WORKER)
        everyones = {name: row > 0 for name, row in everyones.items()}
        for path, leaf in total.items():
            cuts, shape = self._cuts.get(path, ()), leaf.shape
            if len(cuts) > 1:
                holders = _count_holders(cuts, everyones, shape)
                mean = leaf if all(cut.whole for cut in cuts) else leaf / jnp.maximum(holders, 1)
                total[path] = jnp.where(holders > 0, mean, old[path])
            else:
                holders = self._fixed_holders(cuts, shape)
                total[path] = leaf if holders is None else leaf / holders
        written = {path: _write_blocks(old[path], leaf, self._cuts[path], everyones) for path, leaf in blocks.items()}
        return unflatten_paths(total | written)

    def counted(self, full: Tree) -> int:
        """Count the numbers that `combine` sums, less those of the variables, from full variables or their shapes.

        Of blocks it sums fewer; who owns the filters of the variables that are cut along several axes it sums as int32.
        """
        sizes = {path: leaf.size for path, leaf in flatten_paths(full).items()}
        left_out = 0
        for path in self._blocks & sizes.keys():
            parts = self._workers ** (len(self._cuts[path]) - 1)
            left_out += sizes[path] - sizes[path] // parts
        return self._workers * sum(self._widths[name] for name in self._groups_of_several(sizes)) - left_out

    def _deposit(self, old: Tree, rows: Rows, compacts: Sequence[Tree]) -> Tree:
        """Return the sum over this device's workers of all but the blocks, each written into zeros."""
        kept = {path: leaf for path, leaf in old.items() if path not in self._blocks}
        if not kept:
            return {}
        zeros, groups = unflatten_paths(jax.tree.map(jnp.zeros_like, kept)), _without(self.groups, self._blocks)
        deposits = []
        for turn, compact in enumerate(compacts):
            compact = unflatten_paths({path: compact[path] for path in kept})
            owned = owned_indices({group.name: rows[group.name] for group in groups}, self._shares, turn)
            deposits.append(flatten_paths(merge(zeros, groups, owned, compact)))
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *deposits)

    def _lay_side_by_side(self, own: jax.Array) -> jax.Array:
        """Inside shard_map: put [T, ...] of this device's workers into zeros [S, ...] of all workers."""
        everyones = jnp.zeros((self._workers, *own.shape[1:]), own.dtype)
        return jax.lax.dynamic_update_slice_in_dim(everyones, own, jax.lax.axis_index(WORKER) * len(own), 0)

    def _groups_of_several(self, paths: Mapping[str, Any]) -> list[str]:
        """Name the groups that touch those of the variables that are cut along several axes."""
        cuts = (cut for path, cuts in self._several.items() if path in paths for cut in cuts)
        return sorted({part.group for cut in cuts for part in cut.parts})

    def _fixed_holders(self, cuts: tuple[Cut, ...], shape: tuple[int, ...]) -> Any:
        """Return how many workers hold each entry of a variable that is cut on one axis, or on none; None for one."""
        if not cuts:
            return self._workers
        (cut,) = cuts
        if cut.whole:
            return None
        holders = np.where(cut.shared(shape[cut.axis]), self._workers, 1).astype(np.float32)
        return holders.reshape([-1 if axis == cut.axis else 1 for axis in range(len(shape))])


def _count_holders(cuts: tuple[Cut, ...], rows: Rows, shape: tuple[int, ...]) -> jax.Array:
    """Count the workers that hold each entry of a variable that is cut along several axes, from all workers' rows."""
    held = [_along(cut.axis, cut.spread(shape[cut.axis], rows), len(shape)) for cut in cuts]
    return reduce(and_, held).sum(axis=0)


def _write_blocks(old: jax.Array, blocks: jax.Array, cuts: tuple[Cut, ...], rows: Rows) -> jax.Array:
    """Write what each worker holds of a variable, [S, ...], to its place; the rest stays. Rows are all workers'."""
    owners, places = {}, {}
    for cut in cuts:
        mask = rows[cut.parts[0].group]
        owners[cut.axis] = mask.argmax(axis=0)
        places[cut.axis] = (jnp.cumsum(mask, axis=1) - 1)[owners[cut.axis], jnp.arange(mask.shape[1])]
    first, *others = (cut.axis for cut in cuts)
    values = jnp.moveaxis(blocks, first + 1, 1)[owners[first], places[first]]
    values = jnp.moveaxis(values, 0, first)
    for axis in others:
        values = jnp.take(values, places[axis], axis=axis)
    owner = _along(first, owners[first][None], old.ndim)[0]
    same = reduce(and_, (owner == _along(axis, owners[axis][None], old.ndim)[0] for axis in others))
    return jnp.where(same, values, old)


def _along(axis: int, rows: jax.Array, ndim: int) -> jax.Array:
    """Return [S, n] as [S, 1, ..., n, ..., 1], with n on this axis of a variable of so many."""
    return rows.reshape(len(rows), *(-1 if other == axis else 1 for other in range(ndim)))


def _without(groups: Sequence[FilterGroup], paths: set[str]) -> tuple[FilterGroup, ...]:
    """Return the groups without these variables; those that touch nothing else are left out."""
    left = (replace(group, axes={p: a for p, a in group.axes.items() if p not in paths}) for group in groups)
    return tuple(group for group in left if group.axes)
