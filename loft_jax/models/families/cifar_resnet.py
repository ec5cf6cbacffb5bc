"""The post-activation ResNets for CIFAR (He et al., arXiv 1512.03385, section 4.2): 6n + 2 layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.layers import conv, norm


class CifarResNet(nn.Module):
    """A ResNet of three stages of basic blocks on NHWC images.

    Shortcuts have no parameters (the paper's option A): where a stage begins they take every second position, and zeros
    for the new channels. With 1x1 projections there the counts would not be the published ones.

    Attributes:
      blocks: number of blocks of each stage, the n of the paper.
      num_classes: number of logits.
      width: channels of the first stage; they double at each later one.
      dtype: dtype of the computation; variables and logits are float32.
    """

    blocks: int
    num_classes: int
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images, float [batch, height, width, channels], to logits, float32 [batch, num_classes]."""
        x = conv(self.width, 3, dtype=self.dtype, name="stem")(x.astype(self.dtype))
        x = norm(train, self.dtype, "stem_norm")(x)
        for stage in (1, 2, 3):
            for block in range(1, self.blocks + 1):
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
        y = conv(self.features, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        y = norm(train, self.dtype, "norm1")(y)
        y = conv(self.features, 3, dtype=self.dtype, name="conv2")(y)
        y = norm(train, self.dtype, "norm2", relu=False)(y)
        if self.stride > 1:
            new = self.features - x.shape[-1]
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, new)))
        return nn.relu(x + y)
