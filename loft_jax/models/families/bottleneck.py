"""ResNets of bottleneck blocks, post-activation (He et al., arXiv 1512.03385)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.layers import conv, downsample, norm


class BottleneckResNet(nn.Module):
    """A ResNet of blocks of 1x1, 3x3 and 1x1 convolutions on NHWC images.

    A stage's first block strides in its 3x3 convolution, as is usual since the paper, which strides in the one before.

    Attributes:
      blocks: number of blocks of each stage.
      num_classes: number of logits.
      width: inner channels of the first stage; they double at each later one, and blocks return four times as many.
      stem: "cifar" (3x3) or "imagenet" (7x7 stride 2, then 3x3 max-pooling stride 2).
      dtype: dtype of the computation; variables and logits are float32.
    """

    blocks: tuple[int, ...]
    num_classes: int
    width: int = 64
    stem: str = "cifar"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images, float [batch, height, width, channels], to logits, float32 [batch, num_classes]."""
        imagenet = self.stem == "imagenet"
        x = conv(self.width, 7 if imagenet else 3, 2 if imagenet else 1, dtype=self.dtype, name="stem")(
            x.astype(self.dtype)
        )
        x = norm(train, self.dtype, "stem_norm")(x)
        x = downsample(x) if imagenet else x
        for stage, count in enumerate(self.blocks, 1):
            for block in range(1, count + 1):
                features, stride = self.width * 2 ** (stage - 1), 2 if stage > 1 and block == 1 else 1
                x = _Block(features, stride, self.dtype, name=f"stage{stage}_block{block}")(x, train)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


class _Block(nn.Module):
    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        outer = 4 * self.features
        y = conv(self.features, 1, dtype=self.dtype, name="conv1")(x)
        y = norm(train, self.dtype, "norm1")(y)
        y = conv(self.features, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = norm(train, self.dtype, "norm2")(y)
        y = conv(outer, 1, dtype=self.dtype, name="conv3")(y)
        y = norm(train, self.dtype, "norm3", relu=False)(y)
        if self.stride > 1 or x.shape[-1] != outer:
            x = conv(outer, 1, dtype=self.dtype, name="shortcut")(x[:, :: self.stride, :: self.stride])
            x = norm(train, self.dtype, "shortcut_norm", relu=False)(x)
        return nn.relu(x + y)
