"""Wide ResNets for CIFAR (Zagoruyko and Komodakis, arXiv 1605.07146), without dropout."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.layers import conv, norm


class WideResNet(nn.Module):
    """A wide ResNet of three stages of pre-activation basic blocks on NHWC images; it has 6 n + 4 layers.

    Attributes:
      blocks: number of blocks of each stage, n.
      num_classes: number of logits.
      width: channels of the first stage, 16 times the paper's k; they double at each later one. The stem has 16.
      dtype: dtype of the computation; variables and logits are float32.
    """

    blocks: int
    num_classes: int
    width: int = 160
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images, float [batch, height, width, channels], to logits, float32 [batch, num_classes]."""
        x = conv(16, 3, dtype=self.dtype, name="stem")(x.astype(self.dtype))
        for stage in (1, 2, 3):
            for block in range(1, self.blocks + 1):
                features, stride = self.width * 2 ** (stage - 1), 2 if stage > 1 and block == 1 else 1
                x = _Block(features, stride, block == 1, self.dtype, name=f"stage{stage}_block{block}")(x, train)
        x = norm(train, self.dtype, "norm")(x)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


class _Block(nn.Module):
    features: int
    stride: int
    first: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = norm(train, self.dtype, "norm1")(x)
        if self.first:
            x = conv(self.features, 1, dtype=self.dtype, name="shortcut")(y[:, :: self.stride, :: self.stride])
        y = conv(self.features, 3, self.stride, dtype=self.dtype, name="conv1")(y)
        y = norm(train, self.dtype, "norm2")(y)
        return x + conv(self.features, 3, dtype=self.dtype, name="conv2")(y)
