"""The inputs of Theorem 1: samples, their patches, their labels."""

from typing import NamedTuple

import numpy as np

from loft_jax.data import read_digits
from loft_jax.theory.config import TheoryConfig


class Inputs(NamedTuple):
    """What the network is trained on.

    Attributes:
      patches: [n, p, d * q] float64, phi_j(x); their squared norms sum to 1 for every sample.
      labels: [n] float64, 1 or -1.
    """

    patches: np.ndarray
    labels: np.ndarray


def make_inputs(config: TheoryConfig) -> Inputs:
    """Make the inputs that the settings describe; they depend on the seed."""
    settings, rng = config.theory, np.random.default_rng(config.seed)
    if settings.data == "digits":
        images, labels = _draw_digits(rng, settings.samples)
    else:
        images = rng.normal(size=(settings.samples, settings.channels, settings.pixels))
        labels = rng.choice([-1.0, 1.0], size=settings.samples)
    # Every pixel is in q patches.
    norms = np.sqrt(settings.window * np.sum(images**2, axis=(1, 2), keepdims=True))
    return Inputs(patches(images / norms, settings.window), labels)


def patches(images: np.ndarray, window: int) -> np.ndarray:
    """Return the patches of inputs: q neighbouring pixels of all channels, one patch from every pixel on.

    A patch at the edge continues at the opposite edge.

    Args:
      images: [n, d, p].
      window: q, at most p.

    Returns:
      [n, p, d * q] of the same dtype.
    """
    samples, channels, pixels = images.shape
    neighbours = (np.arange(pixels)[:, None] + np.arange(window)) % pixels
    return images[:, :, neighbours].transpose(0, 2, 1, 3).reshape(samples, pixels, channels * window)


def _draw_digits(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_digits()
    chosen = rng.choice(len(labels), size=samples, replace=False)
    # Without subtracting the mean, all digits would be nearly parallel and the kernel nearly singular.
    return images[chosen] - images.mean(axis=0), np.where(labels[chosen] % 2, 1.0, -1.0)
