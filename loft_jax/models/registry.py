"""The models of a config: those that declare their filter groups, the families, and users' own.

A new architecture is one module, one line here or in `families`, and its name in `config/model.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from loft_jax.config import Config
from loft_jax.errors import UserError, format_value
from loft_jax.filters import filter_scores, flatten_paths
from loft_jax.models.declared import DeclarationError, make_network
from loft_jax.models.linen import LinenSource
from loft_jax.models.network import Network
from loft_jax.models.resnet import ResNet
from loft_jax.models.sizes import variable_shapes

# What a norm keeps of its batches.
_STATISTICS = ("mean", "var")

_DECLARED = {
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
      name: one of preresnet18, preresnet20, preresnet34, resnet18, resnet34, which declare their filter groups.
      num_classes: number of logits.
      width: channels of the first stage; None for the published width (64; preresnet20: 16).
      stem: "cifar" or "imagenet".
      dtype: dtype of the computation; variables stay float32.

    Raises:
      ValueError: unknown name or stem, or a width or class count below 1.
    """
    if name not in _DECLARED:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(_DECLARED)}")
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"unknown stem {stem!r}; known: cifar, imagenet")
    architecture, published = _DECLARED[name]
    width = published if width is None else width
    if width < 1 or num_classes < 1:
        raise ValueError(f"width={width} and num_classes={num_classes} must be at least 1")
    return architecture(num_classes=num_classes, width=width, stem=stem, dtype=dtype)


def make_model(config: Config, num_classes: int, image_shape: tuple[int, ...] | None = None) -> Network:
    """Make the model that a config names, with the config's precision.

    Args:
      config: the config.
      num_classes: number of logits.
      image_shape: of one example, (height, width, channels) or (features,); None unless `needs_images(config)`.

    Raises:
      UserError: a network of the user's that cannot be loaded, or that such examples do not fit.
    """
    settings, dtype = config.model, jnp.dtype(config.precision)
    if not needs_images(config):
        return create_model(settings.name, num_classes, width=settings.width, stem=settings.stem, dtype=dtype)
    assert image_shape is not None
    if settings.own:
        from loft_jax.models.loading import load_source

        source = load_source(settings.name, settings.options, num_classes)
    else:
        from loft_jax.models.families import create_family

        module = create_family(
            settings.name,
            num_classes,
            width=settings.width,
            stem=settings.stem,
            dtype=dtype,
            options=settings.options,
        )
        source = LinenSource(module)
    try:
        network = make_network(source, tuple(image_shape), dtype)
        network.filter_groups()
    except UserError:
        raise
    except DeclarationError as error:
        raise UserError(
            f"model.name={format_value(settings.name)}: its declares_groups is true, but it {error}"
        ) from None
    except Exception as error:  # A user's code may raise anything.
        shape = "x".join(map(str, image_shape))
        reason = " ".join(str(error).split())[:400]
        raise UserError(
            f"model.name={format_value(settings.name)}: cannot be called with a batch of {shape} images of "
            f"{config.data.name}: {type(error).__name__}: {reason}"
        ) from error
    _check_later_use(network, tuple(image_shape), settings.name)
    return network


def _check_later_use(network: Network, image_shape: tuple[int, ...], name: str) -> None:
    """Raise UserError unless norms can be estimated again for an evaluation, and filters be ranked for tickets."""
    variables = variable_shapes(network, image_shape)
    for path in flatten_paths(variables.get("batch_stats", {})):
        if path.rpartition("/")[2] not in _STATISTICS:
            raise UserError(
                f"model.name={format_value(name)}: keeps {path} in batch_stats, which cannot be estimated again on the "
                f"full network before an evaluation; only {' and '.join(_STATISTICS)} can"
            )
    try:
        jax.eval_shape(partial(filter_scores, groups=network.filter_groups()), variables)
    except ValueError as error:
        raise UserError(f"model.name={format_value(name)}: its filters cannot be ranked: {error}") from None


def needs_images(config: Config) -> bool:
    """Whether the config's model is made for images of a certain shape; the ResNets are known without the data."""
    return config.model.name not in _DECLARED


def published_width(name: str) -> int | None:
    """Return the published width of a model of this name, the channels of its first stage; None if it is a user's."""
    if name in _DECLARED:
        return _DECLARED[name][1]
    if ":" in name:
        return None
    from loft_jax.models.families import FAMILIES

    return FAMILIES[name].width
