"""A worker's state packed into few arrays: nothing is lost, and a step computes what it computes unpacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_resnets import tiny

from loft_jax.filters import flatten_paths
from loft_jax.loft.packing import PackedState, pack_statistics
from loft_jax.loft.state import State


def drawn_state():
    """A state in which every number is another one."""
    _, variables = tiny(preactivation=True)
    count = iter(range(10_000))

    def fill(leaf):
        return jnp.full(leaf.shape, next(count), leaf.dtype) + jnp.arange(leaf.size).reshape(leaf.shape) / 10_000

    params, stats, momentum = (
        jax.tree.map(fill, tree) for tree in (variables["params"], variables["batch_stats"], variables["params"])
    )
    return State(params=params, batch_stats=stats, momentum=momentum)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_unpacking_gives_the_state_back(dtype):
    state = drawn_state()
    back = jax.jit(lambda state: PackedState.pack(state, dtype).unpack())(state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_vectors_are_one_array_and_kernels_stay():
    packed = PackedState.pack(drawn_state(), jnp.float32)
    params = flatten_paths(drawn_state().params)
    assert packed.copies is None
    assert packed.params["vectors"].size == sum(leaf.size for leaf in params.values() if leaf.ndim == 1)
    assert flatten_paths(packed.params["kernels"]).keys() == {path for path in params if path.endswith("kernel")}


def test_in_low_precision_the_network_gets_copies_of_the_kernels():
    packed = PackedState.pack(drawn_state(), jnp.bfloat16)
    params = flatten_paths(packed.unpack_params(packed.trained))
    for path, leaf in flatten_paths(drawn_state().params).items():
        expected = leaf.astype(jnp.bfloat16) if path.endswith("kernel") else leaf
        np.testing.assert_array_equal(params[path], expected)


def test_statistics_in_another_order_are_packed_alike():
    stats = drawn_state().batch_stats
    turned = {name: dict(reversed(norms.items())) for name, norms in reversed(stats.items())}
    np.testing.assert_array_equal(pack_statistics(turned), pack_statistics(stats))


def test_a_network_without_norms_has_empty_vectors():
    state = State(
        params={"dense": {"kernel": jnp.ones((2, 3))}},
        batch_stats={},
        momentum={"dense": {"kernel": jnp.zeros((2, 3))}},
    )
    back = PackedState.pack(state, jnp.float32).unpack()
    jax.tree.map(np.testing.assert_array_equal, back, state)
