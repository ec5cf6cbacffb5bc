"""The size of networks: variables, parameters, and the FLOPs of training. Nothing is run."""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from loft_jax.models.flops import count_flops
from loft_jax.models.network import Network

Tree = dict[str, Any]


@lru_cache(maxsize=64)
def variable_shapes(model: Network, image_shape: tuple[int, ...]) -> Tree:
    """Return shapes and dtypes of the variables, {"params", "batch_stats"}, for images [height, width, channels].

    They are kept, because a start asks several times, and tracing an initialisation takes a tenth of a second and more.
    The tree is not to be changed.
    """
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))


def parameter_count(model: Network, image_shape: tuple[int, ...]) -> int:
    """Count the parameters of a network for images of this shape (height, width, channels)."""
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model, image_shape)["params"]))


class TrainingFlops(NamedTuple):
    """FLOPs of the loss and gradients of one image, counted in two ways.

    Attributes:
      computed: those of the products that are computed, as `count_flops` counts them. The count of this program.
      conventional: 6 for every multiplication of the forward pass, those with padding too, as the literature counts:
        two FLOPs, and the backward pass takes twice the forward one.
    """

    computed: int
    conventional: int


def training_flops(model: Network, image_shape: tuple[int, ...]) -> TrainingFlops:
    """Count the FLOPs of the loss and gradients of one image [height, width, channels]."""

    def forward(variables: Tree, images: jax.Array) -> jax.Array:
        return model.apply(variables, images)

    def loss(params: Tree, batch_stats: Tree, images: jax.Array) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits.sum(), updated

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = variable_shapes(model, image_shape)
    gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return TrainingFlops(
        computed=count_flops(gradients.trace(shapes["params"], shapes.get("batch_stats", {}), images)),
        conventional=3 * count_flops(jax.jit(forward).trace(shapes, images), padding=True),
    )


def counted_flops(program: jax.stages.Lowered | jax.stages.Compiled) -> float:
    """Return the operations of one run as XLA counts them: before optimisation if lowered, after it if compiled."""
    counts = program.cost_analysis()
    assert counts is not None, "this backend counts no operations"
    return counts["flops"]
