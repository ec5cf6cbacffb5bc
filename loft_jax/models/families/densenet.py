"""DenseNets with bottlenecks and compression (Huang et al., arXiv 1608.06993)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.layers import conv, downsample, norm


class DenseNet(nn.Module):
    """A DenseNet on NHWC images: each layer reads what all layers of its stage before it have made.

    Attributes:
      layers: number of layers of each stage.
      num_classes: number of logits.
      width: channels of the first convolution; each layer adds half as many (the paper's growth rate).
      stem: "cifar" (3x3) or "imagenet" (7x7 stride 2, then 3x3 max-pooling stride 2).
      dtype: dtype of the computation; variables and logits are float32.
    """

    layers: tuple[int, ...]
    num_classes: int
    width: int = 64
    stem: str = "cifar"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images, float [batch, height, width, channels], to logits, float32 [batch, num_classes]."""
        imagenet, x = self.stem == "imagenet", x.astype(self.dtype)
        if imagenet:
            x = conv(self.width, 7, 2, dtype=self.dtype, name="stem")(x)
            x = downsample(norm(train, self.dtype, "stem_norm")(x))
        else:
            x = conv(self.width, 3, dtype=self.dtype, name="stem")(x)
        growth = max(1, self.width // 2)
        for stage, count in enumerate(self.layers, 1):
            if stage > 1:
                features = x.shape[-1] // 2
                x = norm(train, self.dtype, f"transition{stage}_norm")(x)
                x = conv(features, 1, dtype=self.dtype, name=f"transition{stage}_conv")(x)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            for layer in range(1, count + 1):
                x = _Layer(growth, self.dtype, name=f"stage{stage}_layer{layer}")(x, train)
        x = norm(train, self.dtype, "norm")(x)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


class _Layer(nn.Module):
    growth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = norm(train, self.dtype, "norm1")(x)
        y = conv(4 * self.growth, 1, dtype=self.dtype, name="conv1")(y)
        y = norm(train, self.dtype, "norm2")(y)
        return jnp.concatenate([x, conv(self.growth, 3, dtype=self.dtype, name="conv2")(y)], axis=-1)
