"""Variables that are summed over the workers: owned entries are written into zeros, and what is shared is averaged."""

import math
from collections.abc import Mapping, Sequence
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


class Summed:
    """Takes the workers' shares from full variables that every device holds, and brings them together again.

    Attributes:
      groups: the split groups, as far as they touch these variables.
    """

    def __init__(self, groups: Sequence[FilterGroup], workers: int):
        self.groups, self._workers = tuple(groups), workers
        self._shares = {group.name: group.width // workers for group in self.groups}
        self._cuts = filter_cuts(self.groups)

    def take(self, variables: Tree, rows: Mapping[str, jax.Array], turn: Any) -> Tree:
        """Return a worker's compact variables.

        Args:
          variables: full variables, nested dicts.
          rows: group name -> bool [T, n], what this device's workers own.
          turn: which of them.
        """
        return extract(variables, self.groups, owned_indices(rows, self._shares, turn))

    def take_kept(self, kept: Any, rows: Mapping[str, jax.Array], turn: Any) -> Any:
        """Return a worker's part of `State.kept`, from that of the full state. Other arguments as for `take`."""
        return None if kept is None else self.take({"params": kept}, rows, turn)["params"]

    def combine(self, before: Tree, rows: Mapping[str, jax.Array], compacts: Sequence[Tree]) -> Tree:
        """Inside shard_map: return the full variables from the compact ones of this device's workers.

        Entries that one worker holds are exact; those that several hold are averaged; those that none holds keep their
        value. Arguments as for `take`, and results as nested dicts.
        """
        zeros = jax.tree.map(jnp.zeros_like, before)
        deposits = [
            merge(zeros, self.groups, owned_indices(rows, self._shares, turn), compact)
            for turn, compact in enumerate(compacts)
        ]
        old, total, counts = flatten_paths(before), flatten_paths(sum_over_workers(deposits)), {}
        for path, leaf in total.items():
            cuts = self._cuts.get(path, ())
            if len(cuts) <= 1:
                holders = self._count_holders(cuts, leaf.shape)
                total[path] = leaf if holders is None else leaf / holders
                continue
            # Computed once for a kernel and its momentum.
            which = (cuts, leaf.shape)
            if which not in counts:
                counts[which] = _count_over_workers(cuts, rows, leaf.shape)
            if not all(cut.whole for cut in cuts):
                leaf = leaf / jnp.maximum(counts[which], 1)
            total[path] = jnp.where(counts[which] > 0, leaf, old[path])
        return unflatten_paths(total)

    def counted(self, full: Tree) -> int:
        """Count the int32 that a sum of holders moves, from full variables or their shapes."""
        shapes = {path: leaf.shape for path, leaf in flatten_paths(full).items()}
        counted = {(cuts, shapes[path]) for path, cuts in self._cuts.items() if path in shapes and len(cuts) > 1}
        return sum(math.prod(shape[cut.axis] for cut in cuts) for cuts, shape in counted)

    def _count_holders(self, cuts: tuple[Cut, ...], shape: tuple[int, ...]) -> Any:
        """Return how many workers hold each entry of a variable that is cut on one axis, or on none; None for one."""
        if not cuts:
            return self._workers
        (cut,) = cuts
        if cut.whole:
            return None
        holders = np.where(cut.shared(shape[cut.axis]), self._workers, 1).astype(np.float32)
        return holders.reshape([-1 if axis == cut.axis else 1 for axis in range(len(shape))])


def sum_over_workers(trees: Sequence[Tree]) -> Tree:
    """Inside shard_map: sum over all workers, given the trees of this device's workers."""
    return jax.lax.psum(jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees), WORKER)


def _count_over_workers(cuts: tuple[Cut, ...], rows: Mapping[str, jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """Inside shard_map: count the workers that hold each entry of a variable that is cut along several axes."""
    held = jnp.array(True)
    for cut in cuts:
        mask = cut.spread(shape[cut.axis], rows)
        held = held & mask.reshape(len(mask), *(n if axis == cut.axis else 1 for axis, n in enumerate(shape)))
    return jax.lax.psum(held.sum(axis=0), WORKER)
