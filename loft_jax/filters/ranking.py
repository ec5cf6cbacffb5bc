"""The filter distance: scores, rankings, and Spearman's footrule weighted towards the top (paper, filter distance).

Pure functions on numpy or JAX arrays of any origin. They are jitted; batch them with `jax.vmap`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax.filters.arrays import flatten_paths, jit_any_byte_order, native
from loft_jax.filters.groups import FilterGroup, Place

_NORM_ORDERS = {"l2": 2, "l1": 1}


def filter_scores(
    variables: Mapping[str, Any], groups: Sequence[FilterGroup], norm: str = "l2"
) -> dict[str, jax.Array]:
    """Compute the norm of each filter of each group's kernel.

    A group's kernel is the convolution or dense layer that computes its filters: the one that it names, or the one path
    ending in "/kernel" along whose last axis the filters run.

    Args:
      variables: nested dicts of arrays, collection first ({"params": ...}).
      groups: the model's filter groups.
      norm: "l1" or "l2".

    Returns:
      Group name -> float32 [n].

    Raises:
      ValueError: unknown norm; or a group has no such kernel among the variables, or several, or one of another width.
    """
    if norm not in _NORM_ORDERS:
        raise ValueError(f"norm={norm!r}: must be one of {', '.join(_NORM_ORDERS)}")
    flat = flatten_paths(variables)
    kernels = {group: find_kernel(flat, group) for group in groups}
    places = tuple((group.name, axis, place, group.width) for group, (_, axis, place) in kernels.items())
    return _norms(native({group.name: flat[path] for group, (path, *_) in kernels.items()}), places, norm)


@jit_any_byte_order
def rank_filters(scores: Any) -> jax.Array:
    """Return the rank of each filter, scores [n] -> int32 [n]: 1 for the highest score, ties by lower index, NaN last.

    Scores are compared as float32 (float64 under jax_enable_x64): closer ones are ties.
    """
    order = jnp.argsort(-jnp.asarray(scores, float), stable=True)
    return jnp.zeros(len(order), jnp.int32).at[order].set(jnp.arange(1, len(order) + 1, dtype=jnp.int32))


@jit_any_byte_order
def footrule(reference: Any, other: Any) -> jax.Array:
    """The distance of one ranking of a layer's filters from another: sum over i of 1/i |ln i - ln sigma(i)|.

    i runs over the positions of the reference R, and sigma(i) is the position in the other ranking of the filter that R
    puts at position i (paper, F_filter). 1/i gives the reference's top the most weight, so the distance is NOT
    symmetric: with the arguments exchanged, the top of the other ranking has the most weight.

    Args:
      reference, other: ranks [n], each a permutation of 1..n, as `rank_filters` returns them. Not checked here: other
        input gives a meaningless number.

    Returns:
      float32 scalar, 0 for equal rankings.
    """
    return _distance(jnp.asarray(reference, jnp.float32), jnp.asarray(other, jnp.float32))


@jit_any_byte_order
def footrule_matrix(ranks: Any) -> jax.Array:
    """Compute `footrule` of every pair, ranks [T, n] -> float32 [T, T]; the row is the reference."""
    ranks = jnp.asarray(ranks, jnp.float32)
    # Row by row: all pairs at once would hold T * T * n numbers.
    return jax.lax.map(lambda reference: _distance(reference[None], ranks), ranks)


def expected_footrule(n: int) -> float:
    """Return the mean of `footrule` from a fixed ranking to all n! rankings: the distance of chance.

    With ln k! as the sum of ln 1 .. ln k, the mean over j of |ln i - ln j| is ((2 i - n) ln i + ln n! - 2 ln i!) / n.
    """
    total = math.lgamma(n + 1)
    return sum(((2 * i - n) * math.log(i) + total - 2 * math.lgamma(i + 1)) / i for i in range(1, n + 1)) / n


def normalised_footrule(reference: Any, other: Any) -> jax.Array:
    """Divide `footrule` by its mean over random rankings: 1 is no better than chance, for every n; 0 for n = 1."""
    return divide_by_chance(footrule(reference, other), np.shape(reference)[-1])


def divide_by_chance(distances: Any, n: int) -> Any:
    """Divide distances between rankings of n filters (any shape) by the distance of chance; 0 for n = 1."""
    return distances / expected_footrule(n) if n > 1 else 0.0 * distances


def check_ranks(ranks: np.ndarray, group: str) -> None:
    """Raise ValueError, naming the group, unless ranks [n] are a permutation of 1..n."""
    ranks = np.asarray(ranks)
    if not np.array_equal(np.sort(ranks), np.arange(1, len(ranks) + 1)):
        raise ValueError(f"filter group {group!r}: ranks must be a permutation of 1..{len(ranks)}")


def check_scores(scores: np.ndarray, group: str) -> None:
    """Raise ValueError, naming the group, unless all scores are finite."""
    if not np.isfinite(scores).all():
        (index, *_), count = np.flatnonzero(~np.isfinite(scores)), np.count_nonzero(~np.isfinite(scores))
        raise ValueError(
            f"filter group {group!r}: {count} scores are not finite, the first is that of filter {index} "
            f"({scores[index]}); draw tickets from a snapshot whose variables are finite"
        )


def _distance(reference: jax.Array, other: jax.Array) -> jax.Array:
    # Not the difference of two logarithms: in float32 that loses the digits of neighbouring ranks at the bottom.
    low, high = jnp.minimum(reference, other), jnp.maximum(reference, other)
    return (jnp.log1p((high - low) / low) / reference).sum(axis=-1)


@partial(jax.jit, static_argnames=("places", "norm"))
def _norms(
    kernels: Mapping[str, jax.Array], places: tuple[tuple[str, int, Place | None, int], ...], norm: str
) -> dict[str, jax.Array]:
    norms: dict[str, jax.Array] = {}
    for name, axis, place, width in places:
        kernel = jnp.moveaxis(jnp.asarray(kernels[name], jnp.float32), axis, -1)
        if place is not None:
            kernel = jnp.swapaxes(kernel[..., place.entries(width)], -1, -2)
        norms[name] = jnp.linalg.norm(kernel.reshape(-1, width), ord=_NORM_ORDERS[norm], axis=0)
    return norms


def find_kernel(flat: Mapping[str, Any], group: FilterGroup) -> tuple[str, int, Place | None]:
    """Return the path of a group's kernel, and where the filters lie on it."""
    declared = [group.kernel] if group.kernel else [path for path in group.axes if path.endswith("/kernel")]
    missing = [path for path in declared if path not in flat]
    if missing:
        raise ValueError(f"filter group {group.name!r} declares {missing[0]!r}, which is not among the variables")
    places = [(path, axis, place) for path in declared for axis, place in group.places(path)]
    if group.kernel is None:
        places = [(path, axis, place) for path, axis, place in places if axis == flat[path].ndim - 1]
    if len(places) != 1:
        raise ValueError(
            f"filter group {group.name!r} must have one kernel along whose last axis its filters run, not "
            f"{[path for path, *_ in places]}"
        )
    path, axis, place = places[0]
    width = flat[path].shape[axis]
    if place is None and width != group.width:
        raise ValueError(
            f"filter group {group.name!r}: {path!r} has {width} filters, and the model declares {group.width}"
        )
    return path, axis, place
