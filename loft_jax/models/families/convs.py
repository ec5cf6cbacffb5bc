"""Conv-2, Conv-4 and Conv-6 of the lottery ticket hypothesis (Frankle and Carbin, arXiv 1803.03635)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.layers import conv

_GLOROT = nn.initializers.glorot_normal()


class ConvNet(nn.Module):
    """Pairs of 3x3 convolutions with max-pooling after each, then three dense layers, on NHWC images; without norm.

    On 32x32 images Conv-6 has 2.26 million weights, where the paper says 1.7.

    Attributes:
      pairs: number of pairs of convolutions.
      num_classes: number of logits.
      width: channels of the first pair; they double at each later one, and the dense layers have four times as many.
      dtype: dtype of the computation; variables and logits are float32.
    """

    pairs: int
    num_classes: int
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images, float [batch, height, width, channels], to logits, float32 [batch, num_classes]."""
        x = x.astype(self.dtype)
        for pair in range(1, self.pairs + 1):
            for layer in (2 * pair - 1, 2 * pair):
                features, name = self.width * 2 ** (pair - 1), f"conv{layer}"
                x = nn.relu(conv(features, 3, dtype=self.dtype, use_bias=True, kernel_init=_GLOROT, name=name)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for layer in (1, 2):
            dense = nn.Dense(4 * self.width, dtype=self.dtype, kernel_init=_GLOROT, name=f"dense{layer}")
            x = nn.relu(dense(x))
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=_GLOROT, name="head")
        return head(x).astype(jnp.float32)
