"""The models by name. A new architecture is one module, one line here, and its name in `config/fields.py`."""

from functools import partial

import jax.numpy as jnp

from loft_jax.config import Config
from loft_jax.models.network import Network
from loft_jax.models.resnet import ResNet

_MODELS = {
    "preresnet18": (partial(ResNet, blocks=(2, 2, 2, 2), preactivation=True), 64),
    "preresnet20": (partial(ResNet, blocks=(3, 3, 3), preactivation=True), 16),
    "preresnet34": (partial(ResNet, blocks=(3, 4, 6, 3), preactivation=True), 64),
    "resnet18": (partial(ResNet, blocks=(2, 2, 2, 2), preactivation=False), 64),
    "resnet34": (partial(ResNet, blocks=(3, 4, 6, 3), preactivation=False), 64),
}


def create_model(
    name: str, num_classes: int, *, width: int | None = None, stem: str = "cifar", dtype: jnp.dtype = jnp.float32
) -> ResNet:
    """Create a Flax Linen module by name: `init(key, x)`, `apply(variables, x, train=False)`.

    It maps NHWC images to float32 logits.

    Args:
      name: one of preresnet18, preresnet20, preresnet34, resnet18, resnet34.
      num_classes: number of logits.
      width: channels of the first stage; None for the published width (64; preresnet20: 16).
      stem: "cifar" or "imagenet".
      dtype: dtype of the computation; variables stay float32.

    Raises:
      ValueError: unknown name or stem, or a width or class count below 1.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(_MODELS)}")
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"unknown stem {stem!r}; known: cifar, imagenet")
    architecture, published = _MODELS[name]
    width = published if width is None else width
    if width < 1 or num_classes < 1:
        raise ValueError(f"width={width} and num_classes={num_classes} must be at least 1")
    return architecture(num_classes=num_classes, width=width, stem=stem, dtype=dtype)


def make_model(config: Config, num_classes: int) -> Network:
    """Create the model that a config names, with the config's precision."""
    settings, dtype = config.model, jnp.dtype(config.precision)
    return create_model(settings.name, num_classes, width=settings.width, stem=settings.stem, dtype=dtype)


def published_width(name: str) -> int:
    """Return the published width of a model of this name: the channels of its first stage."""
    return _MODELS[name][1]
