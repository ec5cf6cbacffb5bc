"""Networks as users bring them: the file's path and a name after a colon are their `model.name`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict

from loft_jax import FilterGroup, Place
from loft_jax.models.resnet import ResNet


class Small(nn.Module):
    """Linen: a flatten before the dense layer, dropout, batch norm."""

    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x, train: bool = False):
        for i in range(2):
            x = nn.Conv(self.width * 2**i, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class Listed(nnx.Module):
    """NNX: lists of layers, and the same architecture as `Small`."""

    def __init__(self, num_classes, rngs, width=8):
        self.convs = nnx.List([nnx.Conv(1, width, (3, 3), rngs=rngs), nnx.Conv(width, 2 * width, (3, 3), rngs=rngs)])
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs), nnx.BatchNorm(2 * width, rngs=rngs)])
        self.hidden = nnx.Linear(8 * width, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.head(self.dropout(nnx.relu(self.hidden(x.reshape(len(x), -1)))))


class Plain(nn.Module):
    """Linen without norms, without dropout, without an argument for training."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(16)(x)))


class Declared(nn.Module):
    """Linen without norms: it says that LoFT is to split the first of its two hidden layers."""

    num_classes: int
    widths: Mapping[str, int] = FrozenDict(first=32, second=16)
    branch_scales: Mapping[str, float] = FrozenDict()
    dtype: Any = jnp.float32

    declares_groups: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = x.reshape(len(x), -1)
        for name in ("first", "second"):
            x = nn.relu(nn.Dense(self.widths[name], dtype=self.dtype, name=name)(x)) * self.branch_scales.get(name, 1.0)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)

    def filter_groups(self):
        first = {"params/first/kernel": 1, "params/first/bias": 0, "params/second/kernel": 0}
        second = {"params/second/kernel": 1, "params/second/bias": 0, "params/head/kernel": 0}
        return (
            FilterGroup("first", self.widths["first"], first, partitioned=True),
            FilterGroup("second", self.widths["second"], second, partitioned=False),
        )

    def left_whole(self):
        return {}

    def with_widths(self, widths):
        return self.clone(widths=FrozenDict({**self.widths, **widths}))

    def with_branch_scales(self, scales):
        return self.clone(branch_scales=FrozenDict({**self.branch_scales, **scales}))

    def with_norms(self, *, axis=None, momentum=None):
        return self


class Undeclared(Declared):
    declares_groups: ClassVar[bool] = False


class Cut(Declared):
    """A sequence of three blocks of a layer each."""

    segment: tuple[int, int] = (0, 3)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        first, last = self.segment
        x = x.reshape(len(x), -1)
        for name in self.block_names()[first : min(last, 2)]:
            x = nn.relu(nn.Dense(self.widths[name], dtype=self.dtype, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x).astype(jnp.float32) if last == 3 else x

    def block_names(self):
        return ("first", "second", "head")

    def with_segment(self, first, last):
        return self.clone(segment=(first, last))


class Misnamed(Declared):
    def filter_groups(self):
        return (FilterGroup("first", 32, {"params/frist/kernel": 1}, partitioned=True),)


class Miscounted(Declared):
    def filter_groups(self):
        return (FilterGroup("first", 31, {"params/first/kernel": 1}, partitioned=True),)


class Forgetful(Declared):
    """Its declaration leaves out what reads the filters."""

    def filter_groups(self):
        return (FilterGroup("first", 32, {"params/first/kernel": 1, "params/first/bias": 0}, partitioned=True),)


class Rounded(Declared):
    def __call__(self, x, train: bool = False):
        return super().__call__(x, train).astype(jnp.bfloat16)


class Unfinished(Plain):
    """Says that it declares its groups, and does not."""

    declares_groups: ClassVar[bool] = True

    def filter_groups(self):
        return ()

    def with_widths(self, widths):
        return self


class Unhashable(Declared):
    sizes: Any = dataclasses.field(default_factory=list)


class Unranked(Declared):
    """Two kernels of its first group could be the one that computes it."""

    def filter_groups(self):
        first, second = super().filter_groups()
        axes = {"params/first/kernel": 1, "params/first/bias": 0, "params/second/kernel": (Place(0),)}
        return (dataclasses.replace(first, axes=axes, kernel="params/first/weight"), second)


class Averaged(nn.Module):
    """Keeps an average of its inputs among the statistics of norms."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        seen = self.variable("batch_stats", "average", jnp.zeros, (1,))
        if train and not self.is_initializing():
            seen.value = 0.9 * seen.value + 0.1 * x.mean()
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(16)(x.reshape(len(x), -1))))


class Untyped(Declared):
    dtype: ClassVar[Any] = jnp.float32


class Unsaid(Plain):
    """Has some of the methods, and does not say that it declares anything."""

    def filter_groups(self):
        return ()


class DeclaredNnx(Listed):
    declares_groups: ClassVar[bool] = True


def residual(num_classes, width=4):
    """A network of blocks that declares its groups."""
    return ResNet(blocks=(1, 2), num_classes=num_classes, width=width, preactivation=True)


class Summed(nn.Module):
    """Nothing of it can be split: the filters of its only hidden layer are averaged."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.LayerNorm()(nn.Dense(16)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(hidden)


class Decomposed(nn.Module):
    """Its hidden layer goes through an operation that no rule knows."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(16)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(jnp.linalg.qr(hidden, mode="r").sum(axis=0, keepdims=True) + hidden)


class TwoInputs(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, y):
        return nn.Dense(self.num_classes)(x + y)


def no_module(num_classes):
    return [num_classes]


def no_classes(width):
    return Plain(width)


def without_rngs(num_classes):
    return Listed(num_classes, nnx.Rngs(0))


def feature_maps(num_classes):
    return nn.Conv(num_classes, (3, 3))


def failing(num_classes):
    raise RuntimeError("the disk is on fire")


not_callable = 3
