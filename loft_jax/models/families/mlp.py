"""Multilayer perceptrons: with batch norm, and LeNet-300-100 as in the lottery ticket hypothesis (arXiv 1803.03635)."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.layers import norm

_GLOROT = nn.initializers.glorot_normal()


class MLP(nn.Module):
    """A perceptron of dense layers without bias, each with batch norm and a ReLU, and a dense head.

    Independent subnet training (arXiv 1910.02120) splits such networks by their neurons.

    Attributes:
      num_classes: number of logits.
      hidden: number of neurons of each hidden layer.
      dtype: dtype of the computation; variables and logits are float32.
      running: whether norms keep running statistics; if not, they use those of the batch in evaluation too.
      head_norm: whether the head has, instead of a bias, a norm without parameters behind it.
    """

    num_classes: int
    hidden: tuple[int, ...]
    dtype: Any = jnp.float32
    running: bool = True
    head_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map examples, float [batch, ...], to logits, float32 [batch, num_classes]."""
        x = x.reshape(len(x), -1).astype(self.dtype)
        for layer, neurons in enumerate(self.hidden, 1):
            x = nn.Dense(neurons, use_bias=False, dtype=self.dtype, name=f"dense{layer}")(x)
            x = norm(train, self.dtype, f"norm{layer}", running=self.running)(x)
        x = nn.Dense(self.num_classes, use_bias=not self.head_norm, dtype=self.dtype, name="head")(x)
        if self.head_norm:
            x = norm(train, self.dtype, "head_norm", relu=False, running=self.running, affine=False)(x)
        return x.astype(jnp.float32)


def make_mlp(
    num_classes: int,
    width: int,
    dtype: Any = jnp.float32,
    hidden_layers: int = 2,
    norm: Literal["running", "batch"] = "running",
    head_norm: bool = False,
) -> MLP:
    """Make a perceptron with this number of hidden layers of this width; the options are those of the config."""
    return MLP(num_classes, (width,) * hidden_layers, dtype, running=norm == "running", head_norm=head_norm)


class LeNet300(nn.Module):
    """LeNet-300-100: two hidden dense layers without norm.

    Attributes:
      num_classes: number of logits.
      width: neurons of the first layer; the second has a third of them, rounded down, at least 1.
      dtype: dtype of the computation; variables and logits are float32.
    """

    num_classes: int
    width: int = 300
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map examples, float [batch, ...], to logits, float32 [batch, num_classes]."""
        x = x.reshape(len(x), -1).astype(self.dtype)
        for layer, neurons in enumerate((self.width, max(1, self.width // 3)), 1):
            x = nn.relu(nn.Dense(neurons, dtype=self.dtype, kernel_init=_GLOROT, name=f"dense{layer}")(x))
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=_GLOROT, name="head")
        return head(x).astype(jnp.float32)
