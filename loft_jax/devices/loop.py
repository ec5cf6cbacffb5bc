"""A loop of steps on every device of a mesh: one program that loops, or one dispatch a step."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from loft_jax.devices.mesh import fuses_loops, wait_for_collective

Tree = Any

# Steps that are dispatched, with their batches on the devices, while one is computed.
STEPS_AHEAD = 2


class DeviceLoop:
    """`carry = begin(*args)`, then `count` times `carry = step(carry, *args)`, on each device's part of the arguments.

    With `feed_specs` a step gets further arguments of its own, `step(carry, *args, *next(feed))`.

    `begin` and `step` see what a device holds, inside shard_map; the carry is different on each device along the axes
    of `carry_spec` (see `vary`), and comes back with one leading axis over those devices. Fused, all is one program
    with a scan; stepwise, `begin` and `step` are two programs and a step is one dispatch. Both compute the same. What
    is fed is stepwise always.

    Attributes:
      fused: whether all is one program.
      begin, step, loop: the jitted programs; `step` donates its carry.
    """

    def __init__(
        self,
        mesh: Mesh,
        begin: Callable[..., Tree],
        step: Callable[..., Tree],
        count: int,
        in_specs: tuple[Any, ...],
        carry_spec: PartitionSpec,
        feed_specs: tuple[PartitionSpec, ...] = (),
        step_has_collective: bool = False,
        fused: bool | None = None,
    ):
        self._mesh, self._count, self._carry_spec = mesh, count, carry_spec
        self._step_has_collective = step_has_collective
        self.fused = not feed_specs and (fuses_loops(mesh) if fused is None else fused)

        def run(*args: Tree) -> Tree:
            carry, _ = jax.lax.scan(lambda carry, _: (step(carry, *args), None), begin(*args), length=count)
            return carry

        shard_map = partial(jax.shard_map, mesh=mesh, out_specs=carry_spec)
        self.loop = jax.jit(shard_map(lambda *args: _stack(run(*args)), in_specs=in_specs))
        self.begin = jax.jit(shard_map(lambda *args: _stack(begin(*args)), in_specs=in_specs))
        self.step = jax.jit(
            shard_map(
                lambda carry, *args: _stack(step(unstack(carry), *args)), in_specs=(carry_spec, *in_specs, *feed_specs)
            ),
            donate_argnums=0,
        )

    def __call__(self, *args: Tree, feed: Iterator[tuple[Tree, ...]] | None = None) -> Tree:
        """The last carry, each leaf with a leading axis over the devices of `carry_spec`.

        `feed` gives at least `count` times the further arguments of a step; None where it has none.
        """
        if self.fused:
            return self.loop(*args)
        carry, in_flight = self.begin(*args), deque()
        for _ in range(self._count):
            batch = next(feed) if feed is not None else ()
            carry = self.step(carry, *args, *batch)
            if self._step_has_collective:
                wait_for_collective(carry, self._mesh)
            if feed is not None:
                self._hold_back(in_flight, carry)
        return carry

    def _hold_back(self, in_flight: deque[jax.Array], carry: Tree) -> None:
        """Let the host be a few steps ahead of the devices and no more: each step's batch takes memory there."""
        # A copy: the carry itself is donated to the next step.
        in_flight.append(jnp.copy(min(jax.tree.leaves(carry), key=lambda leaf: leaf.size)))
        if len(in_flight) > STEPS_AHEAD:
            jax.block_until_ready(in_flight.popleft())


def vary(tree: Tree, axes: str | tuple[str, ...]) -> Tree:
    """Mark leaves that are equal on all devices along these mesh axes as free to differ.

    Without this, the gradient with respect to a value that shard_map knows to be replicated is summed over the mesh
    without a word, and "local" steps on shared variables are not local.
    """
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axes, to="varying"), tree)


def _stack(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def unstack(tree: Tree) -> Tree:
    """Drop the leading axis that a carry comes back with, inside shard_map, where a device sees its own part only."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
