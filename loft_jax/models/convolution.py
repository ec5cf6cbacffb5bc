"""Convolutions of NHWC images, in the form that each platform runs fastest.

On CPU, XLA's fast kernels take a convolution only if one of its sides has more than 16 channels; the others run at half
the speed. So there a narrow 3x3 convolution is computed on pairs of neighbouring pixels: a pair has twice the channels,
and between pairs lies a 3x2 kernel, a quarter of it zeros. That is a third more arithmetic in less time. On other
platforms `lax.conv_general_dilated` stays in the program: the choice is made by the platform a program is lowered for.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# XLA's fast kernels refuse a convolution whose wider side has no more channels (xla/backends/cpu/ynn_support.cc).
_NARROW = 16
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_ONE_PIXEL = ((1, 1), (1, 1))


def convolve(lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """Convolve as `lax.conv_general_dilated` does; equal to it up to rounding, and so are the gradients.

    A narrow convolution has no forward-mode derivative.

    Args:
      lhs: images, float [batch, height, width, channels].
      rhs: kernel of the same dtype, [height, width, channels, features].
      window_strides, padding, options: as `lax.conv_general_dilated` takes them.

    Returns:
      float [batch, height, width, features].
    """
    if not _is_narrow(lhs, rhs, window_strides, padding, options):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    return _narrow(_vary_like(rhs, lhs), _vary_like(lhs, rhs))


def _is_narrow(lhs: jax.Array, rhs: jax.Array, strides: Sequence[int], padding: Any, options: dict[str, Any]) -> bool:
    """Whether this is a 3x3 convolution of float32, with stride 1 and padding 1, for which pairs of pixels pay."""
    options = dict(options)
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.pop("dimension_numbers", None))
    return (
        layout == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and all(value in (None, 1, (1, 1)) for value in options.values())
        and lhs.dtype == rhs.dtype == jnp.float32
        and rhs.shape[:2] == (3, 3)
        and max(rhs.shape[2:]) <= _NARROW
        and lhs.shape[2] % 2 == 0
        and tuple(strides) == (1, 1)
        and not isinstance(padding, str)
        and tuple(map(tuple, padding)) == _ONE_PIXEL
    )


@jax.custom_vjp
def _narrow(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=_on_pairs, default=_plain)


def _narrow_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _narrow(x, kernel), (x, kernel)


def _narrow_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the gradients; that of the kernel as XLA derives it: a convolution that is fast on every platform."""
    x, kernel = saved
    (kernel_gradient,) = jax.vjp(partial(_plain, x), kernel)[1](dy)
    gradient = lax.platform_dependent(dy, x, kernel, cpu=_input_gradient_on_pairs, default=_input_gradient)
    return gradient, kernel_gradient


_narrow.defvjp(_narrow_forward, _narrow_backward)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), _ONE_PIXEL, dimension_numbers=_LAYOUT)


def _input_gradient(dy: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
    (gradient,) = jax.vjp(lambda x: _plain(x, kernel), x)[1](dy)
    return gradient


def _input_gradient_on_pairs(dy: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _on_pairs(dy, kernel[::-1, ::-1].swapaxes(2, 3))


def _on_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with a kernel of pairs. The input's pairs begin at the padding: an output pair needs two of them."""
    batch, height, width, channels = x.shape
    pairs = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0))).reshape(batch, height, width // 2 + 1, 2 * channels)
    y = lax.conv_general_dilated(pairs, _pair_kernel(kernel), (1, 1), ((1, 1), (0, 0)), dimension_numbers=_LAYOUT)
    return y.reshape(batch, height, width, kernel.shape[-1])


def _pair_kernel(kernel: jax.Array) -> jax.Array:
    """Lay a kernel [3, 3, c, f] on four neighbouring pixels, once for each of two outputs: [3, 2, 2 * c, 2 * f]."""
    first, second = (jnp.pad(kernel, ((0, 0), shift, (0, 0), (0, 0))) for shift in ((0, 1), (1, 0)))
    rows, _, channels, features = kernel.shape
    return jnp.stack([first, second], axis=3).reshape(rows, 2, 2 * channels, 2 * features)


def _vary_like(other: jax.Array, x: jax.Array) -> jax.Array:
    """Return x as a value that varies over the mesh axes of `other` too: so its gradient is summed over them.

    `_narrow` writes its own gradients, and cannot tell which of them are due that sum. XLA removes the selection.
    """
    return jnp.where(False, lax.stop_gradient(other[0, 0, 0, 0]), x)
