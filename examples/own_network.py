"""A network of one's own, without a word about filters: train it by its file and name.

    python -m loft_jax.groups --config digits --model.name examples/own_network.py:PocketVGG
    python -m loft_jax.train --config digits --model.name examples/own_network.py:PocketVGG --workdir runs/pocket

`PocketVGG` is Flax NNX, `pocket_mlp` Flax Linen. LoFT finds the filters of both by tracing them.
"""

from itertools import pairwise

import flax.linen as nn
import jax
from flax import nnx


class Block(nnx.Module):
    """A convolution with batch norm, ReLU and pooling."""

    def __init__(self, entering: int, filters: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(entering, filters, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(filters, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))


class PocketVGG(nnx.Module):
    """Three blocks, then a dense layer behind a flatten, for grey images of 8 x 8.

    Args:
      num_classes: number of logits; comes from the data.
      rngs: random numbers of the initialisation, and of the dropout.
      width: filters of the first block; --model.options '{width: 32}' changes it.
    """

    def __init__(self, num_classes: int, rngs: nnx.Rngs, width: int = 16):
        widths = (1, width, 2 * width, 4 * width)
        self.blocks = nnx.List([Block(*pair, rngs) for pair in pairwise(widths)])
        self.hidden = nnx.Linear(widths[-1], 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(64, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images [batch, height, width, 1] to logits [batch, num_classes]."""
        for block in self.blocks:
            x = block(x)
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.head(self.dropout(x))


def pocket_mlp(num_classes: int, hidden: int = 64) -> nn.Module:
    """Make two dense layers in Linen, which need nothing of one's own at all."""
    return nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(hidden), nn.relu, nn.Dense(num_classes)])
