"""A loop of steps on every device of a mesh: one program that loops, or one dispatch a step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from loft_jax.mesh import fuses_loops, settle

Tree = Any


class DeviceLoop:
    """`carry = begin(*args)`, then `count` times `carry = step(carry, *args)`, on each device's part of the arguments.

    `begin` and `step` see what a device holds, inside shard_map; the carry is different on each device along the axes
    of `carry_spec` (see `vary`), and comes back with one leading axis over those devices. Fused, all is one program
    with a scan; stepwise, `begin` and `step` are two programs and a step is one dispatch. Both compute the same.
    """

    def __init__(
        self,
        mesh: Mesh,
        begin: Callable[..., Tree],
        step: Callable[..., Tree],
        count: int,
        in_specs: tuple[PartitionSpec, ...],
        carry_spec: PartitionSpec,
        step_has_collective: bool = False,
        fused: bool | None = None,
    ):
        self._mesh, self._count = mesh, count
        self._step_has_collective = step_has_collective
        self.fused = fuses_loops(mesh) if fused is None else fused

        def run(*args: Tree) -> Tree:
            carry, _ = jax.lax.scan(lambda carry, _: (step(carry, *args), None), begin(*args), length=count)
            return carry

        shard_map = partial(jax.shard_map, mesh=mesh, out_specs=carry_spec)
        self._run = jax.jit(shard_map(lambda *args: _stack(run(*args)), in_specs=in_specs))
        self.begin = jax.jit(shard_map(lambda *args: _stack(begin(*args)), in_specs=in_specs))
        self._step = jax.jit(
            shard_map(lambda carry, *args: _stack(step(unstack(carry), *args)), in_specs=(carry_spec, *in_specs)),
            donate_argnums=0,
        )

    def __call__(self, *args: Tree) -> Tree:
        """The last carry, each leaf with a leading axis over the devices of `carry_spec`."""
        if self.fused:
            return self._run(*args)
        carry = self.begin(*args)
        for _ in range(self._count):
            carry = self._step(carry, *args)
            if self._step_has_collective:
                settle(carry, self._mesh)
        return carry

    def lowered(self, *args: Tree) -> dict[str, jax.stages.Lowered]:
        """The programs of a call with these arguments (arrays or their shapes), by name; runs nothing."""
        if self.fused:
            return {"loop": self._run.lower(*args)}
        carry = jax.eval_shape(self.begin, *args)
        return {"begin": self.begin.lower(*args), "step": self._step.lower(carry, *args)}


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
