"""The programs of one of GPipe's stages."""

from typing import Any

import jax
import jax.numpy as jnp

from loft_jax.loft import LocalStep, State
from loft_jax.models import SegmentedNetwork

Tree = dict[str, Any]


class PipelineStage:
    """The programs `forward` and `backward` for one micro-batch, and `update` and `zeros`.

    A step adds up {"gradients", "batch_stats"}, and in the last stage "loss". These sums start as `zeros` and end as
    means over the micro-batches.

    Args:
      step: the local step of the full CNN.
      segment: the stage's module.
      microbatches: number of micro-batches.
      first, last: whether it is the first or the last stage of the pipeline.
    """

    def __init__(self, step: LocalStep, segment: SegmentedNetwork, microbatches: int, *, first: bool, last: bool):
        self._step, self._segment, self._microbatches = step, segment, microbatches
        self._first, self._last = first, last
        self.zeros = jax.jit(self._zeros)
        self.forward = jax.jit(self._forward, donate_argnums=1)
        self.backward = jax.jit(self._backward_last if last else self._backward, donate_argnums=1)
        self.update = jax.jit(self._update, donate_argnums=0)

    def _zeros(self, state: State) -> Tree:
        sums = {"gradients": state.params, "batch_stats": state.batch_stats}
        return jax.tree.map(jnp.zeros_like, sums | ({"loss": jnp.float32(0)} if self._last else {}))

    def _forward(self, state: State, sums: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        out, updated = self._apply(state.params, state, x)
        return out, sums | {"batch_stats": self._add(sums["batch_stats"], updated)}

    def _backward(self, state: State, sums: Tree, x: jax.Array, gradient: jax.Array) -> tuple[Any, Tree]:
        """Take the gradient of the stage's output. Returns the gradient of its input, and the sums."""
        _, pull = jax.vjp(lambda params, x: self._apply(params, state, x)[0], state.params, x)
        return self._add_gradients(pull(gradient), sums)

    def _backward_last(self, state: State, sums: Tree, x: jax.Array, targets: jax.Array) -> tuple[Any, Tree]:
        def loss_of(params: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
            logits, updated = self._apply(params, state, x)
            return self._step.mean_loss(logits, targets), updated

        loss, pull, updated = jax.vjp(loss_of, state.params, x, has_aux=True)
        sums = sums | {
            "batch_stats": self._add(sums["batch_stats"], updated),
            "loss": self._add(sums["loss"], loss),
        }
        return self._add_gradients(pull(jnp.ones_like(loss)), sums)

    def _update(self, state: State, sums: Tree, step: jax.Array) -> State:
        rate = self._step.learning_rate(step)
        updated = self._step.rule.update_parameters(sums["gradients"], state, rate, step)
        return State(batch_stats=sums["batch_stats"], **updated)

    def _apply(self, params: Tree, state: State, x: jax.Array) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        out, updated = self._segment.apply(variables, x, train=True, mutable=["batch_stats"])
        return out, updated.get("batch_stats", {})

    def _add_gradients(self, gradients: tuple[Tree, jax.Array], sums: Tree) -> tuple[Any, Tree]:
        own, back = gradients
        return None if self._first else back, sums | {"gradients": self._add(sums["gradients"], own)}

    def _add(self, total: Any, value: Any) -> Any:
        return jax.tree.map(lambda t, v: t + v / self._microbatches, total, value)
