"""VGG networks (Simonyan and Zisserman, arXiv 1409.1556) with batch norm after each convolution."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.layers import conv, norm


class VGG(nn.Module):
    """A VGG on NHWC images: five stages of 3x3 convolutions, each with max-pooling after it.

    Attributes:
      convolutions: number of convolutions of each stage.
      num_classes: number of logits.
      width: channels of the first stage; they double at each later stage up to eight times this.
      stem: "cifar": the mean over positions and one dense layer, as is usual for 32x32 images; "imagenet": two dense
        layers of 64 times the width (4096) with dropout, then the head.
      dtype: dtype of the computation; variables and logits are float32.
    """

    convolutions: tuple[int, ...]
    num_classes: int
    width: int = 64
    stem: str = "cifar"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images, float [batch, height, width, channels], to logits, float32 [batch, num_classes]."""
        x = x.astype(self.dtype)
        for stage, count in enumerate(self.convolutions, 1):
            features = self.width * min(2 ** (stage - 1), 8)
            for layer in range(1, count + 1):
                # The bias is without effect before a norm; the published counts have it.
                x = conv(features, 3, dtype=self.dtype, use_bias=True, name=f"stage{stage}_conv{layer}")(x)
                x = norm(train, self.dtype, f"stage{stage}_norm{layer}")(x)
            if min(x.shape[1:3]) > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        if self.stem == "imagenet":
            x = x.reshape(len(x), -1)
            for layer in (1, 2):
                x = nn.relu(nn.Dense(64 * self.width, dtype=self.dtype, name=f"dense{layer}")(x))
                x = nn.Dropout(0.5, deterministic=not train)(x)
        else:
            x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
