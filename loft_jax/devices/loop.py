"""A loop of steps on every device of a mesh: one program that loops, or one dispatch per step."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from loft_jax.devices.mesh import wait_for_collective
from loft_jax.devices.setup import step_options

Tree = Any

# Number of steps that are dispatched ahead of the one that is computed; their batches are on the devices already.
STEPS_AHEAD = 2


class DeviceLoop:
    """Runs `carry = begin(*args)`, then `count` times `carry = step(carry, *args)`, on every device's part of `args`.

    With `feed_specs`, every step also gets the next arguments from an iterator: `step(carry, *args, *next(feed))`.

    `begin` and `step` run inside shard_map, on the part of the arguments that a device holds. The carry differs between
    devices along the axes of `carry_spec` (see `vary`), and is returned with one leading axis over those devices.

    Fused, the whole loop is one program with a scan; otherwise `begin` and `step` are two programs, and every step is
    one dispatch. Both compute the same. A loop with a feed is never fused.

    Attributes:
      fused: whether the whole loop is one program.
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
        self._mesh, self._count = mesh, count
        self._step_has_collective = step_has_collective
        self.fused = not feed_specs and (fuses_loops(mesh) if fused is None else fused)

        def run(*args: Tree) -> Tree:
            # The statistics of a network that has none are the same on all devices, but not behind a step.
            start = vary(begin(*args), carry_spec[0])
            carry, _ = jax.lax.scan(lambda carry, _: (step(carry, *args), None), start, length=count)
            return carry

        shard_map = partial(jax.shard_map, mesh=mesh, out_specs=carry_spec)
        self.loop = jax.jit(shard_map(lambda *args: _stack(run(*args)), in_specs=in_specs))
        self.begin = jax.jit(shard_map(lambda *args: _stack(begin(*args)), in_specs=in_specs))
        self.step = jax.jit(
            shard_map(
                lambda carry, *args: _stack(step(unstack(carry), *args)), in_specs=(carry_spec, *in_specs, *feed_specs)
            ),
            donate_argnums=0,
            compiler_options=step_options(mesh),
        )

    def __call__(self, *args: Tree, feed: Iterator[tuple[Tree, ...]] | None = None) -> Tree:
        """Run the loop; return the last carry, each leaf with a leading axis over the devices of `carry_spec`.

        Args:
          feed: yields the further arguments of a step, at least `count` times; None if there are no `feed_specs`.
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
                self._limit_steps_ahead(in_flight, carry)
        return carry

    def _limit_steps_ahead(self, in_flight: deque[jax.Array], carry: Tree) -> None:
        """Wait if the host is too many steps ahead of the devices: the batch of each of them takes device memory."""
        # Wait for a copy of one leaf, because the carry itself is donated to the next step.
        in_flight.append(jnp.copy(min(jax.tree.leaves(carry), key=lambda leaf: leaf.size)))
        if len(in_flight) > STEPS_AHEAD:
            jax.block_until_ready(in_flight.popleft())


def vary(tree: Tree, axes: str | tuple[str, ...]) -> Tree:
    """Allow leaves that are equal on all devices along these mesh axes to differ from now on; others stay as they are.

    Otherwise shard_map knows that a value is replicated, and silently sums the gradient with respect to it over the
    mesh; "local" steps on shared variables would then not be local.
    """
    axes = (axes,) if isinstance(axes, str) else axes

    def vary_leaf(leaf: jax.Array) -> jax.Array:
        missing = tuple(axis for axis in axes if axis not in jax.typeof(leaf).mat.varying)
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary_leaf, tree)


def fuses_loops(mesh: Mesh) -> bool:
    """Whether a loop of steps should be one program: yes, except on CPU.

    On CPU, XLA runs convolutions inside a loop many times slower than outside, so every step is dispatched separately.
    """
    return mesh.devices.flat[0].platform != "cpu"


def _stack(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def unstack(tree: Tree) -> Tree:
    """Remove the leading axis that a loop adds to its carry; call it inside shard_map, on one device's part."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
