"""Convolutions in the form of each backend: equal to the plain one, and absent from programs for other backends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from loft_jax.models.convolution import convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")
ONE = ((1, 1), (1, 1))


def plain(x, kernel, strides=(1, 1), padding=ONE):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def ours(x, kernel, strides=(1, 1), padding=ONE):
    return convolve(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def draw(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def value_and_gradients(convolution, x, kernel, *settings):
    y, backward = jax.vjp(lambda *a: convolution(*a, *settings), x, kernel)
    return y, *backward(draw(*y.shape, dtype=y.dtype, seed=1))


def assert_same(one, other, tolerance=1e-5):
    for a, b in zip(one, other, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    ("image", "channels", "features"),
    [((8, 8), 16, 16), ((5, 6), 3, 16), ((6, 2), 8, 4), ((1, 2), 1, 1), ((4, 7), 16, 16), ((8, 8), 16, 32)],
    ids=["narrow", "stem", "two-columns", "one-row", "odd-width", "wide"],
)
def test_values_and_gradients_are_those_of_the_plain_convolution(image, channels, features):
    x, kernel = draw(2, *image, channels), draw(3, 3, channels, features)
    assert_same(jax.jit(lambda *a: value_and_gradients(ours, *a))(x, kernel), value_and_gradients(plain, x, kernel))


@pytest.mark.parametrize("batch", [33, 70, 300])
@pytest.mark.parametrize(("size", "stride", "channels"), [(3, 1, 20), (3, 2, 3), (1, 2, 4), (3, 1, 4)])
def test_large_batches_have_the_gradients_of_the_plain_convolution(batch, size, stride, channels):
    x, kernel, pad = draw(batch, 4, 4, channels), draw(size, size, channels, 5), (size // 2, size // 2)
    settings = (stride, stride), (pad, pad)
    assert_same(*(value_and_gradients(f, x, kernel, *settings) for f in (ours, plain)))


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [
        (3, (2, 2), ONE),
        (1, (1, 1), ((0, 0), (0, 0))),
        (3, (1, 1), "VALID"),
        (3, (1, 1), ((1, 1), (0, 2))),
        (7, (2, 2), ((3, 3),) * 2),
    ],
)
def test_other_windows_are_left_as_they_are(size, strides, padding):
    x, kernel = draw(2, 8, 8, 4), draw(size, size, 4, 4)
    for a, b in zip(*(value_and_gradients(f, x, kernel, strides, padding) for f in (ours, plain)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_dtypes_are_left_as_they_are():
    x, kernel = draw(2, 4, 4, 4, dtype=jnp.bfloat16), draw(3, 3, 4, 4, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(*(f(x, kernel).astype(jnp.float32) for f in (ours, plain)))


def test_a_dilated_or_grouped_convolution_is_left_as_it_is():
    x, kernel = draw(2, 8, 8, 4), draw(3, 3, 2, 4)
    for options in ({"feature_group_count": 2}, {"rhs_dilation": (2, 2), "feature_group_count": 2}):
        both = (
            f(x, kernel, (1, 1), ONE, dimension_numbers=LAYOUT, **options) for f in (convolve, lax.conv_general_dilated)
        )
        np.testing.assert_array_equal(*both)


def test_batches_of_batches_under_vmap():
    x, kernel = draw(3, 2, 4, 4, 4), draw(3, 3, 4, 4)
    assert_same([jax.vmap(ours, (0, None))(x, kernel)], [jax.vmap(plain, (0, None))(x, kernel)])


def test_only_programs_for_the_cpu_hold_pairs():
    step = jax.jit(lambda *a: value_and_gradients(ours, *a)).trace(draw(2, 8, 8, 16), draw(3, 3, 16, 16))
    shape = "tensor<3x2x32x32xf32>"
    assert shape in step.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu", "rocm"):
        assert shape not in step.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("specs", [("worker", None), ("worker", "worker"), (None, "worker")])
def test_gradients_on_a_mesh(specs):
    """The gradient of what all devices share is summed over them, as that of the plain convolution is."""
    mesh = jax.make_mesh((2,), ("worker",), axis_types=(AxisType.Auto,))
    specs = PartitionSpec(specs[0]), PartitionSpec(None, None, None, specs[1])
    x, kernel = draw(4, 4, 4, 4), draw(3, 3, 4, 8)

    def gradients(convolution):
        def inside(x, kernel):
            return jax.grad(lambda *a: (convolution(*a) ** 2).sum(), (0, 1))(x, kernel)

        return jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=specs))(x, kernel)

    assert_same(gradients(ours), gradients(plain))
