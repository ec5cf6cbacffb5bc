"""`loft.sync: psum`: owned slices are summed to the full CNN, which every device holds between rounds."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.devices import PER_WORKER, REPLICATED, WORKER, vary
from loft_jax.filters import (
    FilterGroup,
    draw_partition,
    extract,
    filter_axes,
    filter_axes_present,
    flatten_paths,
    merge,
    owned_indices,
    unflatten_paths,
    with_momentum,
)
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.state import State
from loft_jax.loft.sync import Masks
from loft_jax.loft.traffic import BYTES_OF_FLOAT, NO_TRAFFIC, Traffic, variable_sizes
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


class Psum:
    """Writes owned slices into zeros and sums them over the workers; averages shared variables.

    The state at rest is the full state, on every device. Every round draws a new partition.

    Attributes:
      state_spec, masks_spec: sharding of the state at rest, and of a partition's masks, over the mesh.
    """

    state_spec, masks_spec, holds_full = REPLICATED, PER_WORKER, True

    def __init__(self, config: Config, groups: Sequence[FilterGroup], mesh: Mesh):
        self._seed, self._workers, self._devices = config.seed, config.loft.workers, mesh.shape[WORKER]
        self._groups = with_momentum(groups)
        self._split = tuple(group for group in groups if group.partitioned)
        self._shares = {group.name: group.width // self._workers for group in self._split}
        self._draw = jax.jit(self._draw_masks, out_shardings=NamedSharding(mesh, PER_WORKER))

    def place(self, full: State) -> State:
        """Return the full state, on every device of the mesh: it is the state at rest."""
        return full

    def full(self, state: State) -> State:
        """Return the state at rest: it is the full state, on every device of the mesh."""
        return state

    def partition(self, state: State) -> Masks:
        """Draw the masks of the next round: group name -> bool [S, n]; row s is what worker s owns."""
        return self._draw(state.round)

    def compact(self, state: State, masks: Masks, turn: jax.Array) -> State:
        """Inside shard_map: take from the state at rest the compact state of the worker that has this turn."""
        compact = extract(vary(state.collections, WORKER), self._groups, self._owned_indices(masks, turn))
        return State.from_collections(compact)

    def combine(self, state: State, masks: Masks, compacts: Sequence[State]) -> State:
        """Inside shard_map: make the next state at rest from the compact states of a device's workers."""
        full = state.collections
        zeros = jax.tree.map(jnp.zeros_like, full)
        deposits = [
            merge(zeros, self._groups, self._owned_indices(masks, turn), compact.collections)
            for turn, compact in enumerate(compacts)
        ]
        total = flatten_paths(sum_over_workers(deposits))
        before = flatten_paths(full)
        axes = filter_axes_present(total, [g for g in self._groups if g.partitioned])
        covered: dict[Any, jax.Array] = {}
        for path, leaf in total.items():
            if path not in axes:
                total[path] = leaf / self._workers
            elif len(axes[path]) > 1:
                # Computed once for a kernel and its momentum.
                which = (*axes[path], leaf.ndim)
                if which not in covered:
                    covered[which] = self._find_covered(masks, axes[path], leaf.ndim)
                total[path] = jnp.where(covered[which], leaf, before[path])
        return State.from_collections(unflatten_paths(total), round=state.round + 1)

    def traffic(self, full: State) -> Traffic:
        """Count the ring that sums everything, and how many workers hold an entry of two split groups (int32)."""
        if self._devices == 1:
            return NO_TRAFFIC
        sizes = variable_sizes(full)
        split = [group for group in self._groups if group.partitioned]
        widths = {group.name: group.width for group in split}
        pairs = {tuple(pairs) for path, pairs in filter_axes(split).items() if path in sizes and len(pairs) > 1}
        counted = sum(math.prod(widths[name] for _, name in pair) for pair in pairs)
        loss = BYTES_OF_FLOAT
        return Traffic({"all-reduce": BYTES_OF_FLOAT * (sum(sizes.values()) + counted) + loss}, self._devices)

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return no programs: every device holds the full state."""
        return {}

    def _draw_masks(self, round_number: jax.Array) -> Masks:
        return draw_partition(key_for(self._seed, Purpose.PARTITION, round_number), self._split, self._workers)

    def _owned_indices(self, masks: Masks, turn: Any) -> dict[str, jax.Array]:
        return owned_indices(masks, self._shares, turn)

    @staticmethod
    def _find_covered(masks: Masks, pairs: list[tuple[int, str]], ndim: int) -> jax.Array:
        """Find the entries of a variable of two split groups that a worker holds; the others keep their old value."""
        held = jnp.array(True)
        for axis, name in pairs:
            mask = masks[name]
            held = held & mask.reshape(mask.shape[0], *(mask.shape[1] if a == axis else 1 for a in range(ndim)))
        return jax.lax.psum(held.sum(axis=0), WORKER) > 0


def sum_over_workers(trees: Sequence[Tree]) -> Tree:
    """Inside shard_map: sum over all workers, given the trees of this device's workers."""
    return jax.lax.psum(jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees), WORKER)
