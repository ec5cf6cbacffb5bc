"""The size of networks: parameters, and the FLOPs of training. Nothing is run."""

from typing import Any

import jax
import jax.numpy as jnp

from loft_jax.models.flops import count_flops
from loft_jax.models.network import Network

Tree = dict[str, Any]


def parameter_count(model: Network, image_shape: tuple[int, ...]) -> int:
    """Count the parameters of a network for images of this shape (height, width, channels)."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), image)["params"]))


def training_flops(model: Network, image_shape: tuple[int, ...]) -> int:
    """Count the FLOPs of the loss and gradients of one image [height, width, channels], as `count_flops` does."""

    def loss(params: Tree, batch_stats: Tree, images: jax.Array) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits.sum(), updated

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return count_flops(gradients.trace(shapes["params"], shapes["batch_stats"], images))


def counted_flops(program: jax.stages.Lowered | jax.stages.Compiled) -> float:
    """Return the operations of one run as XLA counts them: before optimisation if lowered, after it if compiled."""
    counts = program.cost_analysis()
    assert counts is not None, "this backend counts no operations"
    return counts["flops"]
