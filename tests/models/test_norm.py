"""Batch norm with a gradient written by hand: Flax's layer and autodiff are the reference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from loft_jax.models.norm import BatchNorm, _sum_directly, _sum_in_parts, normalise_batch

SETTINGS = {"momentum": 0.7, "epsilon": 1e-5}


def drawn(*shape, dtype=jnp.float32):
    """Activations whose mean is large beside their deviation, with one channel that is constant."""
    values = np.random.default_rng(shape).normal(3, 0.5, shape)
    values[..., 0] = 2
    return jnp.asarray(values, dtype)


def variables_of(channels):
    rng = np.random.default_rng(channels)
    scale, bias, mean = (jnp.asarray(rng.normal(size=channels), jnp.float32) for _ in range(3))
    var = jnp.asarray(rng.uniform(0.5, 2, channels), jnp.float32)
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def everything(layer, relu, variables, x, weights):
    """Value, updated statistics and all gradients of a layer in training."""

    def loss(params, x):
        y, updated = layer.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        y = nn.relu(y) if relu else y
        return (y.astype(jnp.float32) * weights).sum(), (y, updated["batch_stats"])

    (_, (y, stats)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return {"y": y, "stats": stats, "params": gradients[0], "x": gradients[1]}


def assert_close(one, other, tolerance):
    for path, leaf in jax.tree_util.tree_leaves_with_path(other):
        own = dict(jax.tree_util.tree_leaves_with_path(one))[path]
        assert own.dtype == leaf.dtype, path
        scale = float(jnp.abs(leaf.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            np.asarray(own, np.float32), np.asarray(leaf, np.float32), atol=tolerance * scale, err_msg=str(path)
        )


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(4, 6, 5, 8), (1, 1, 1, 3), (64, 3)], ids=["images", "one-row", "features"])
def test_values_statistics_and_gradients_are_those_of_flax(shape, relu):
    x, weights, variables = drawn(*shape), drawn(*shape[::-1]).T, variables_of(shape[-1])
    ours = BatchNorm(use_running_average=False, dtype=jnp.float32, relu=relu, **SETTINGS)
    theirs = nn.BatchNorm(use_running_average=False, dtype=jnp.float32, **SETTINGS)
    one = everything(ours, False, variables, x, weights)
    other = everything(theirs, relu, variables, x, weights)
    # The gradient of a constant channel is a difference of large numbers that are nearly equal.
    one["x"], other["x"] = (jnp.delete(tree["x"], 0, axis=-1) for tree in (one, other))
    assert_close(one, other, 2e-5)


def test_in_low_precision_statistics_and_gradients_of_parameters_stay_float32():
    x, weights, variables = drawn(8, 4, 4, 6, dtype=jnp.bfloat16), drawn(6, 4, 4, 8).T, variables_of(6)
    ours = BatchNorm(use_running_average=False, dtype=jnp.bfloat16, relu=True, **SETTINGS)
    theirs = nn.BatchNorm(use_running_average=False, dtype=jnp.float32, **SETTINGS)
    one = everything(ours, False, variables, x, weights)
    other = everything(theirs, True, variables, x.astype(jnp.float32), weights)
    assert (one["y"].dtype, one["x"].dtype) == (jnp.bfloat16, jnp.bfloat16)
    one = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), one)
    one["x"], other["x"] = (jnp.delete(tree["x"], 0, axis=-1) for tree in (one, other))
    assert_close(one, other, 2e-2)
    assert_close(one["stats"], other["stats"], 1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_in_evaluation_it_normalises_by_the_running_statistics(relu):
    x, variables = drawn(4, 3, 3, 5), variables_of(5)
    ours = BatchNorm(use_running_average=True, dtype=jnp.float32, relu=relu, **SETTINGS)
    theirs = nn.BatchNorm(use_running_average=True, dtype=jnp.float32, **SETTINGS)
    expected = theirs.apply(variables, x)
    np.testing.assert_allclose(ours.apply(variables, x), nn.relu(expected) if relu else expected, rtol=1e-6, atol=1e-6)


def test_initialisation_is_that_of_flax():
    x = drawn(2, 3, 3, 4)
    ours = BatchNorm(use_running_average=False, dtype=jnp.float32, **SETTINGS).init(jax.random.key(0), x)
    theirs = nn.BatchNorm(use_running_average=False, dtype=jnp.float32, **SETTINGS).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_batch_over_several_devices_has_the_gradients_of_the_whole_batch():
    mesh = jax.make_mesh((2, 2), ("worker", "data"), axis_types=(AxisType.Auto,) * 2)
    x, scale, bias, weights = drawn(8, 3, 3, 4), drawn(4) - 3, drawn(4), drawn(4, 3, 3, 8).T

    def loss(x, scale, bias, weights, axis):
        y, *_ = normalise_batch(x, scale, bias, 1e-5, axis, True)
        return (y * weights).sum()

    def gradients(x, scale, bias, weights):
        def own(*trained):
            return jax.lax.psum(loss(*trained, weights, "data"), "data")

        return jax.grad(own, argnums=(0, 1, 2))(x, scale, bias)

    spread, same = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(gradients, mesh=mesh, in_specs=(spread, same, same, spread), out_specs=(spread, same, same))
    whole = jax.grad(lambda *trained: loss(*trained, weights, None), argnums=(0, 1, 2))(x, scale, bias)
    for one, other in zip(jax.jit(sharded)(x, scale, bias, weights), whole, strict=True):
        # The gradient of a constant channel is a difference of large numbers that are nearly equal.
        one, other = one[..., 1:], other[..., 1:]
        np.testing.assert_allclose(one, other, atol=2e-4 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("shape", [(128, 8, 8, 16), (7, 5, 3), (1, 1)])
def test_sums_in_parts_are_the_sums(shape):
    a, b = drawn(*shape), -drawn(*shape)
    for one, other in zip(_sum_in_parts(a, b), _sum_directly(a, b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_without_running_statistics_it_is_the_same_in_evaluation_as_in_training():
    x, variables = drawn(8, 3, 3, 5), variables_of(5)
    options = {"dtype": jnp.float32, "relu": True, **SETTINGS}
    expected, _ = BatchNorm(use_running_average=False, **options).apply(variables, x, mutable=["batch_stats"])
    for average in (False, True):
        own = BatchNorm(use_running_average=average, running=False, **options)
        assert set(own.init(jax.random.key(0), x)) == {"params"}
        np.testing.assert_array_equal(own.apply({"params": variables["params"]}, x), expected)


def test_without_parameters_it_only_normalises():
    x, options = drawn(8, 5), {"use_running_average": False, "dtype": jnp.float32, "running": False, **SETTINGS}
    own = BatchNorm(affine=False, **options)
    assert own.init(jax.random.key(0), x) == {}
    plain = {"params": {"scale": jnp.ones(5), "bias": jnp.zeros(5)}}
    np.testing.assert_array_equal(own.apply({}, x), BatchNorm(**options).apply(plain, x))
