"""What is measured with: random images and weights, made without a compiler."""

from typing import Any

import numpy as np

from loft_jax.data import Dataset
from loft_jax.models import Network, variable_shapes

Tree = dict[str, Any]


def random_images(examples: int, shape: tuple[int, int, int] = (32, 32, 3)) -> Dataset:
    """Make a data set of random images in 10 classes; their shape is (height, width, channels)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(examples, *shape), dtype=np.uint8)
    labels = rng.integers(0, 10, size=examples).astype(np.int32)
    return Dataset("random", images, labels, images[:10], labels[:10], num_classes=10, crop_padding=4, flip=True)


def random_variables(model: Network, image_shape: tuple[int, ...]) -> Tree:
    """Draw variables as a model initialises them, in NumPy: initialisers take longer to compile than many steps.

    Kernels are normal with variance 2 / fan-out; scales and variances are 1, all else 0. Zeros everywhere would not do:
    processors and cards take less power for them, and may run faster.
    """
    import jax

    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            fan_out = np.prod(leaf.shape) / leaf.shape[-2]
            return rng.normal(scale=np.sqrt(2 / fan_out), size=leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    shapes = variable_shapes(model, image_shape)
    return jax.tree_util.tree_map_with_path(draw, shapes)
