"""`loft.sync: psum`, how workers meet after their local steps: every device holds the full CNN between rounds."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.devices import PER_WORKER, REPLICATED, WORKER, vary
from loft_jax.filters import FilterGroup, partition, with_momentum
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


class Psum:
    """Owned slices are deposited in zeros and summed over the workers; shared variables are averaged.

    At rest the state is the full one, on every device. The partition is drawn anew in every round.

    Attributes:
      state_spec, masks_spec: how the state at rest and a partition's masks lie on the mesh.
    """

    state_spec, masks_spec = REPLICATED, PER_WORKER

    def __init__(self, config: Config, groups: Sequence[FilterGroup], mesh: Mesh):
        self._seed, self._workers = config.seed, config.loft.workers
        self._groups = with_momentum(groups)
        self._split = tuple(group for group in groups if group.partitioned)
        self._shares = {group.name: group.width // self._workers for group in self._split}
        self._draw = jax.jit(self._drawn, out_shardings=NamedSharding(mesh, PER_WORKER))

    def place(self, full: Tree) -> Tree:
        """The full state, on every device of the mesh -> the state at rest."""
        return full

    def full(self, state: Tree) -> Tree:
        """The state at rest -> the full state, on every device of the mesh."""
        return state

    def partition(self, state: Tree) -> Tree:
        """Masks of the coming round: group name -> bool [S, n], row s what worker s owns."""
        return self._draw(state["round"])

    def compact(self, state: Tree, masks: Tree, slot: jax.Array) -> Tree:
        """Inside shard_map: the compact variables of a device's worker, from the state at rest."""
        variables = {name: part for name, part in state.items() if name != "round"}
        return partition.extract(vary(variables, WORKER), self._groups, self._owned(masks, slot))

    def combine(self, state: Tree, masks: Tree, compacts: Sequence[Tree]) -> Tree:
        """Inside shard_map: the next state at rest, from the compact variables of a device's workers."""
        full = {name: collection for name, collection in state.items() if name != "round"}
        zeros = jax.tree.map(jnp.zeros_like, full)
        deposits = [
            partition.merge(zeros, self._groups, self._owned(masks, slot), compact)
            for slot, compact in enumerate(compacts)
        ]
        total = flatten_dict(summed(deposits), sep="/")
        before = flatten_dict(full, sep="/")
        axes = partition.filter_axes_present(total, [g for g in self._groups if g.partitioned])
        covered: dict[Any, jax.Array] = {}
        for path, leaf in total.items():
            if path not in axes:
                total[path] = leaf / self._workers
            elif len(axes[path]) > 1:
                # Once for a kernel and its momentum.
                which = (*axes[path], leaf.ndim)
                if which not in covered:
                    covered[which] = self._covered(masks, axes[path], leaf.ndim)
                total[path] = jnp.where(covered[which], leaf, before[path])
        return unflatten_dict(total, sep="/") | {"round": state["round"] + 1}

    def _drawn(self, round_number: jax.Array) -> Tree:
        return partition.draw_partition(
            key_for(self._seed, Purpose.PARTITION, round_number), self._split, self._workers
        )

    def _owned(self, masks: Tree, slot: Any) -> dict[str, jax.Array]:
        return partition.owned_indices(masks, self._shares, slot)

    @staticmethod
    def _covered(masks: Tree, pairs: list[tuple[int, str]], ndim: int) -> jax.Array:
        """Which entries of a variable of two split groups some worker holds; the rest keep their old value."""
        held = True
        for axis, name in pairs:
            mask = masks[name]
            held = held & mask.reshape(mask.shape[0], *(mask.shape[1] if a == axis else 1 for a in range(ndim)))
        return jax.lax.psum(held.sum(axis=0), WORKER) > 0


def summed(trees: Sequence[Tree]) -> Tree:
    """Inside shard_map: the sum over all workers, given those of this device."""
    return jax.lax.psum(jax.tree.map(lambda *slots: sum(slots[1:], slots[0]), *trees), WORKER)
