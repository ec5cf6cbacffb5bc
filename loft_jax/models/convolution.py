"""Convolutions of NHWC images, in the form that each platform runs fastest.

Two forms are for the CPU. XLA's fast kernels there take a convolution only if one side has more than 16 channels;
the others run at half the speed. So a narrow 3x3 convolution is computed on pairs of neighbouring pixels: a pair has
twice the channels, and between pairs lies a 3x2 kernel, a quarter of it zeros. And the gradient of a kernel is summed
over parts of the batch: XLA moves the batch to the innermost axis first, and with many images that misses every cache.

On other platforms `lax.conv_general_dilated` stays in the program: the choice is made by the platform a program is
lowered for.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from loft_jax.models.varying import vary_like

# XLA's fast kernels refuse a convolution whose wider side has no more channels (xla/backends/cpu/ynn_support.cc).
_NARROW = 16
# Images of a part of the batch, if that makes no more parts than this.
_PART, _MOST_PARTS = 32, 8
_LAYOUT = ("NHWC", "HWIO", "NHWC")

Padding = tuple[tuple[int, int], ...]


def convolve(lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """Convolve as `lax.conv_general_dilated` does; equal to it up to rounding, and so are the gradients.

    A convolution that has a form of its own on CPU has no forward-mode derivative.

    Args:
      lhs: images, float [batch, height, width, channels].
      rhs: kernel of the same dtype, [height, width, channels, features].
      window_strides, padding, options: as `lax.conv_general_dilated` takes them.

    Returns:
      float [batch, height, width, features].
    """
    if not _is_plain(lhs, rhs, padding, options):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    strides, padding = tuple(window_strides), tuple((before, after) for before, after in padding)
    # A batch of any size, as a program of jax.export has it, has a shape that is no integer.
    images = lhs.shape[0]
    if not _is_narrow(lhs, rhs, strides, padding) and not (isinstance(images, int) and images > _PART):
        return _directly(lhs, rhs, strides, padding)
    # `_convolve` writes its own gradients, and cannot tell which of them are due a sum over devices.
    return _convolve(vary_like(lhs, rhs), vary_like(rhs, lhs), strides, padding)


def _is_plain(lhs: jax.Array, rhs: jax.Array, padding: Any, options: dict[str, Any]) -> bool:
    """Whether this is a convolution of float32 NHWC images without dilation, groups and a precision of its own."""
    options = dict(options)
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.pop("dimension_numbers", None))
    return (
        layout == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        and all(value in (None, 1, (1, 1)) for value in options.values())
        and lhs.dtype == rhs.dtype == jnp.float32
        and not isinstance(padding, str)
    )


def _is_narrow(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding) -> bool:
    """Whether pairs of pixels pay."""
    return (
        kernel.shape[:2] == (3, 3)
        and max(kernel.shape[2:]) <= _NARROW
        and x.shape[2] % 2 == 0
        and strides == (1, 1)
        and padding == ((1, 1), (1, 1))
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding) -> jax.Array:
    plain = partial(_directly, strides=strides, padding=padding)
    if not _is_narrow(x, kernel, strides, padding):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_on_pairs, default=plain)


def _forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding) -> tuple[jax.Array, Any]:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: tuple[int, ...], padding: Padding, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    plain = partial(_directly, strides=strides, padding=padding)

    def input_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: plain(x, kernel), x)[1](dy)[0]

    def kernel_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(partial(plain, x), kernel)[1](dy)[0]

    def kernel_gradient_in_parts(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        size = max(_PART, -(-len(x) // _MOST_PARTS))
        parts = [slice(start, start + size) for start in range(0, len(x), size)]
        return reduce(jnp.add, [kernel_gradient(x[part], kernel, dy[part]) for part in parts])

    on_cpu = _input_gradient_on_pairs if _is_narrow(*saved, strides, padding) else input_gradient
    dx = lax.platform_dependent(*saved, dy, cpu=on_cpu, default=input_gradient)
    dkernel = lax.platform_dependent(*saved, dy, cpu=kernel_gradient_in_parts, default=kernel_gradient)
    return dx, dkernel


_convolve.defvjp(_forward, _backward)


def _directly(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _input_gradient_on_pairs(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
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
