"""MobileNetV2 (Sandler et al., arXiv 1801.04381): inverted residuals around depthwise convolutions."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.layers import conv, norm

_PUBLISHED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280


class MobileNetV2(nn.Module):
    """A MobileNetV2 on NHWC images, with ReLU6 and without dropout.

    Attributes:
      num_classes: number of logits.
      width: channels of the first convolution; those of the other layers are in proportion, rounded down, at least 1.
      stem: "imagenet" as published; "cifar": stride 1 in the first convolution and the second stage, for 32x32 images.
      stages: of each its expansion, channels at the published width, number of blocks and stride of the first of them.
      dtype: dtype of the computation; variables and logits are float32.
    """

    num_classes: int
    width: int = _STEM
    stem: str = "cifar"
    stages: tuple[tuple[int, int, int, int], ...] = _PUBLISHED
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images, float [batch, height, width, channels], to logits, float32 [batch, num_classes]."""
        imagenet = self.stem == "imagenet"
        x = conv(self.width, 3, 2 if imagenet else 1, dtype=self.dtype, name="stem")(x.astype(self.dtype))
        x = _activate(norm(train, self.dtype, "stem_norm", relu=False)(x))
        for stage, (expansion, channels, count, stride) in enumerate(self.stages, 1):
            for block in range(1, count + 1):
                strides = stride if block == 1 and (imagenet or stage != 2) else 1
                # Known from the architecture, not from x: narrower filters may have the length of others by accident.
                block_of = partial(_Block, self._scale(channels), expansion, strides, block > 1, self.dtype)
                x = block_of(name=f"stage{stage}_block{block}")(x, train)
        x = conv(self._scale(_LAST), 1, dtype=self.dtype, name="last")(x)
        x = _activate(norm(train, self.dtype, "last_norm", relu=False)(x))
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)

    def _scale(self, channels: int) -> int:
        return max(1, channels * self.width // _STEM)


class _Block(nn.Module):
    features: int
    expansion: int
    stride: int
    residual: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner, y = self.expansion * x.shape[-1], x
        if self.expansion > 1:
            y = conv(inner, 1, dtype=self.dtype, name="expand")(y)
            y = _activate(norm(train, self.dtype, "expand_norm", relu=False)(y))
        y = conv(inner, 3, self.stride, dtype=self.dtype, groups=inner, name="depthwise")(y)
        y = _activate(norm(train, self.dtype, "depthwise_norm", relu=False)(y))
        y = conv(self.features, 1, dtype=self.dtype, name="project")(y)
        y = norm(train, self.dtype, "project_norm", relu=False)(y)
        return x + y if self.residual else y


def _activate(x: jax.Array) -> jax.Array:
    return nn.relu6(x)
