"""What a gradient written by hand owes to `jax.shard_map`: sums over devices on which a variable is the same."""

import jax


def vary_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """Return x as a value that varies over the mesh axes of `other` too: so its gradient is summed over them."""
    axes = tuple(sorted(_axes(other) - _axes(x)))
    return jax.lax.pcast(x, axes, to="varying") if axes else x


def sum_like(cotangent: jax.Array, primal: jax.Array) -> jax.Array:
    """Sum a gradient over the mesh axes along which only its variable is the same on all devices, as shard_map does."""
    axes = tuple(sorted(_axes(cotangent) - _axes(primal)))
    return jax.lax.psum(cotangent, axes) if axes else cotangent


def _axes(x: jax.Array) -> frozenset[str]:
    return frozenset(jax.typeof(x).mat.varying)
