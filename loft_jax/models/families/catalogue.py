"""The families by name, each with its published width. A module is imported when a network of it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from loft_jax.errors import UserError, format_value

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Family:
    """An architecture of a family.

    Attributes:
      module, factory: where its Linen module is, and its name there.
      width: published value of the module's field `width`.
      stems: stems that it has.
      fields: further fields of the module, as the architecture has them.
    """

    module: str
    factory: str
    width: int
    stems: tuple[str, ...] = ("cifar", "imagenet")
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        num_classes: int,
        *,
        width: int | None = None,
        stem: str = "cifar",
        dtype: Any = jnp.float32,
        options: Mapping[str, Any] = _NONE,
    ) -> nn.Module:
        """Make the Linen module; it maps images to float32 logits. `width=None` is the published one."""
        factory = getattr(import_module(f"{__package__}.{self.module}"), self.factory)
        fields = {**self.fields, **options, "width": self.width if width is None else width}
        if len(self.stems) > 1:
            fields["stem"] = stem
        return factory(num_classes=num_classes, dtype=dtype, **fields)


_CIFAR = ("cifar",)
FAMILIES: dict[str, Family] = {
    "vgg11": Family("vgg", "VGG", 64, fields={"convolutions": (1, 1, 2, 2, 2)}),
    "vgg13": Family("vgg", "VGG", 64, fields={"convolutions": (2, 2, 2, 2, 2)}),
    "vgg16": Family("vgg", "VGG", 64, fields={"convolutions": (2, 2, 3, 3, 3)}),
    "vgg19": Family("vgg", "VGG", 64, fields={"convolutions": (2, 2, 4, 4, 4)}),
    "resnet20": Family("cifar_resnet", "CifarResNet", 16, _CIFAR, {"blocks": 3}),
    "resnet56": Family("cifar_resnet", "CifarResNet", 16, _CIFAR, {"blocks": 9}),
    "resnet50": Family("bottleneck", "BottleneckResNet", 64, fields={"blocks": (3, 4, 6, 3)}),
    "resnet101": Family("bottleneck", "BottleneckResNet", 64, fields={"blocks": (3, 4, 23, 3)}),
    "wideresnet28_10": Family("wideresnet", "WideResNet", 160, _CIFAR, {"blocks": 4}),
    "mobilenetv2": Family("mobilenet", "MobileNetV2", 32),
    "densenet121": Family("densenet", "DenseNet", 64, fields={"layers": (6, 12, 24, 16)}),
    "mlp": Family("mlp", "make_mlp", 4096, _CIFAR),
    "lenet300": Family("mlp", "LeNet300", 300, _CIFAR),
    "conv2": Family("convs", "ConvNet", 64, _CIFAR, {"pairs": 1}),
    "conv4": Family("convs", "ConvNet", 64, _CIFAR, {"pairs": 2}),
    "conv6": Family("convs", "ConvNet", 64, _CIFAR, {"pairs": 3}),
}


def create_family(
    name: str,
    num_classes: int,
    *,
    width: int | None = None,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    options: Mapping[str, Any] = _NONE,
) -> nn.Module:
    """Create a Linen module of a family: `init(key, x)`, `apply(variables, x, train=False)`.

    Args:
      name: one of `FAMILIES`.
      num_classes: number of logits.
      width: channels of the first stage (neurons of the first layer); None for the published width.
      stem: "cifar" or "imagenet".
      dtype: dtype of the computation; variables and logits are float32.
      options: `model.options` of a config, which has checked them.

    Raises:
      UserError: unknown name, a stem that the family does not have, or a width or class count below 1.
    """
    if name not in FAMILIES:
        raise UserError(f"model.name={format_value(name)}: must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    if stem not in family.stems:
        raise UserError(f"model.stem={format_value(stem)}: must be {' or '.join(family.stems)} for {name}")
    if num_classes < 1 or (width is not None and width < 1):
        raise UserError(f"model.width={width} and {num_classes} classes: both must be at least 1")
    return family(num_classes, width=width, stem=stem, dtype=dtype, options=options)
