"""Batch norm (Ioffe and Szegedy, arXiv 1502.03167) with or without a ReLU after it, in few passes over the activations.

The variables are those of `flax.linen.BatchNorm`, and so are the values up to rounding. What differs is the gradient:
written by hand, it reads the activations and the gradient twice, and keeps nothing else of their size. Differentiated
line by line, the same function makes XLA write the masked gradient too, and read it three times. Accelerators are bound
by that memory.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from loft_jax.models.varying import sum_like

# A GPU needs this many sums side by side to be busy; XLA recomputes masks inside a sum only then, and else writes them.
_SUMS_SIDE_BY_SIDE = 65_536


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, then a ReLU if asked for.

    Its parameters are `scale` and `bias`, its running statistics are `mean` and `var`, each float32 [channels].

    Attributes:
      use_running_average: normalise by the running statistics, if it keeps any, instead of those of the batch, and do
        not update them.
      momentum: weight of the old running statistics in an update.
      epsilon: is added to the variance.
      dtype: dtype of the result; statistics and arithmetic are float32.
      axis_name: mesh axis over whose devices a batch is spread, inside shard_map; None where one device has all of it.
      relu: whether a ReLU follows.
      running: whether it keeps running statistics; if not, it normalises by those of the batch in evaluation too.
      affine: whether it scales and shifts, and so has parameters.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: jnp.dtype
    axis_name: str | None = None
    relu: bool = False
    running: bool = True
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x, [..., channels], of the same shape as the result."""
        channels = (x.shape[-1],)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        else:
            scale, bias = jnp.ones(channels, jnp.float32), jnp.zeros(channels, jnp.float32)
        if not self.running:
            return normalise_batch(x, scale, bias, self.epsilon, self.axis_name, self.relu)[0].astype(self.dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if self.use_running_average:
            factor = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
            running, factor, shift = _along_channels(x, running_mean.value, factor, bias)
            y = (x - running) * factor + shift
            return (nn.relu(y) if self.relu else y).astype(self.dtype)
        y, mean, var = normalise_batch(x, scale, bias, self.epsilon, self.axis_name, self.relu)
        if not self.is_initializing():
            for running, batch in ((running_mean, mean), (running_var, var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * batch
        return y.astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalise_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None, relu: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each channel by the statistics of the batch, scale and shift it, and apply a ReLU if asked for.

    Args:
      x: [..., channels].
      scale, bias: float32 [channels].
      epsilon: is added to the variance.
      axis_name: mesh axis over which the statistics are averaged; None for none.
      relu: whether a ReLU follows.

    Returns:
      The result, in shape and dtype of x; mean and biased variance of the batch, float32 [channels], through which no
      gradient flows.
    """
    return _forward(x, scale, bias, epsilon, axis_name, relu)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None, relu: bool
) -> tuple[Any, Any]:
    wide, rows = _widen(x), _rows(x, axis_name)
    mean, mean_square = (total / rows for total in _sum_rows(wide, wide * wide, axis_name))
    var = jnp.maximum(mean_square - mean * mean, 0)
    inverse = jax.lax.rsqrt(var + epsilon)
    centre, narrow, stretch, shift = _along_channels(x, mean, inverse, scale, bias)
    y = (wide - centre) * narrow * stretch + shift
    y = (nn.relu(y) if relu else y).astype(x.dtype)
    return (y, mean, var), (x, mean, inverse, scale, bias)


def _backward(
    epsilon: float, axis_name: str | None, relu: bool, kept: tuple[jax.Array, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale, bias = kept
    centre, narrow, stretch, shift = _along_channels(x, mean, inverse, scale, bias)

    def recompute() -> tuple[jax.Array, jax.Array]:
        # Without the barrier XLA would find the mask of the ReLU in the forward pass, and keep it in memory until here.
        normalised = (_widen(jax.lax.optimization_barrier(x)) - centre) * narrow
        gradient = _widen(cotangents[0])
        return normalised, jnp.where(normalised * stretch + shift > 0, gradient, 0) if relu else gradient

    normalised, gradient = recompute()
    # Both gradients end in a sum. A compiler that fuses them with their readers would round a product and the addition
    # after it together, in one program and not in another.
    of_bias, of_scale = _sum_rows(gradient, gradient * normalised, axis_name)
    rows = _rows(x, axis_name)
    mean_gradient, slope, factor = _along_channels(x, of_bias / rows, of_scale / rows, inverse * scale)
    normalised, gradient = recompute()
    dx = (factor * (gradient - normalised * slope - mean_gradient)).astype(x.dtype)
    return sum_like(dx, x), sum_like(of_scale, scale), sum_like(of_bias, bias)


normalise_batch.defvjp(_forward, _backward)


def _along_channels(x: jax.Array, *values: jax.Array) -> list[jax.Array]:
    """Return values [channels] in the rank of x: the user's JAX may refuse to promote ranks."""
    return [jax.lax.broadcast_to_rank(value, x.ndim) for value in values]


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _rows(x: jax.Array, axis_name: str | None) -> int:
    return x.size // x.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def _sum_rows(a: jax.Array, b: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Sum two arrays [..., channels] over all axes but the last, and over a mesh axis."""
    totals = jax.lax.platform_dependent(a, b, cuda=_sum_in_parts, rocm=_sum_in_parts, default=_sum_directly)
    return totals if axis_name is None else jax.lax.psum(totals, axis_name)


def _sum_directly(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = tuple(range(a.ndim - 1))
    return a.sum(axes), b.sum(axes)


def _sum_in_parts(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum in two steps of one kernel each; left to itself, XLA takes three."""
    channels = a.shape[-1]
    rows = a.size // channels
    parts = math.gcd(rows, max(1, _SUMS_SIDE_BY_SIDE // channels))
    zero = jnp.zeros((), a.dtype)
    return jax.lax.reduce(
        tuple(x.reshape(parts, rows // parts, channels).sum(axis=1) for x in (a, b)),
        (zero, zero),
        lambda left, right: (left[0] + right[0], left[1] + right[1]),
        (0,),
    )
