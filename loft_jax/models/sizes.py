"""Parameters of networks, and FLOPs as XLA counts them before it optimises; nothing is compiled or run."""

import jax
import jax.numpy as jnp

from loft_jax.models.network import Network


def parameter_count(model: Network, image_shape: tuple[int, ...]) -> int:
    """Parameters of a network for images of this shape (height, width, channels)."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), image)["params"]))


def training_flops(model: Network, image_shape: tuple[int, ...]) -> float:
    """Of one image's loss and gradients, for images [height, width, channels]; the update is left out."""

    def loss(params: dict, batch_stats: dict, images: jax.Array) -> tuple[jax.Array, dict]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits.sum(), updated

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return flops(jax.jit(jax.value_and_grad(loss, has_aux=True)), shapes["params"], shapes["batch_stats"], images)


def flops(program: jax.stages.Wrapped, *arguments: object) -> float:
    """Of one call of a jitted function with these arguments, or their shapes."""
    return counted_flops(program.lower(*arguments))


def counted_flops(program: jax.stages.Lowered | jax.stages.Compiled) -> float:
    """Operations of one run, as XLA counts them: before it optimises, or as it has compiled them."""
    counts = program.cost_analysis()
    assert counts is not None, "this backend counts no operations"
    return counts["flops"]
