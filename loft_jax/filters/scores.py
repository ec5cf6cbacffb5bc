"""Scores of filters beside the norms of their kernels: what a ticket keeps the highest of."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from loft_jax.filters.arrays import flatten_paths, native
from loft_jax.filters.groups import FilterGroup, Place
from loft_jax.filters.ranking import filter_scores, find_kernel
from loft_jax.filters.selection import NORMS

# A variable of a group, with the axis and place of the filters on it.
_Along = tuple[str, int, Place | None]


def score_filters(variables: Mapping[str, Any], groups: Sequence[FilterGroup], norm: str) -> dict[str, jax.Array]:
    """Compute the score of each filter of each group; higher is better.

    l2, l1: norm of the filter's kernel, as `filter_scores`.
    bn_scale: absolute scale of the batch norm behind it; the sum, if the filter passes several norms.
    fpgm: mean Euclidean distance of its kernel from the kernels of its group. The lowest are nearest to the group's
      geometric median, so the others can stand for them (He et al., arXiv 1811.00250).
    whole_group: l2 norm over all parameters of the filter, in every layer that it touches.
    taylor: is no function of the variables alone: see `gate_derivatives`.

    Args:
      variables: nested dicts of arrays, collection first ({"params": ...}).
      groups: the model's filter groups.
      norm: one of `NORMS`.

    Returns:
      Group name -> float32 [n].

    Raises:
      ValueError: unknown norm, or "taylor"; or a group has no such kernel or scale among the variables, or one of
        another width.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: must be one of {', '.join(NORMS)}")
    if norm == "taylor":
        raise ValueError("norm='taylor': needs gradients on training batches; use python -m loft_jax.tickets")
    if norm in ("l2", "l1"):
        return filter_scores(variables, groups, norm)
    flat = flatten_paths(variables)
    scores: dict[str, jax.Array] = {}
    for group in groups:
        if norm == "fpgm":
            rows = [_rows(flat, group, find_kernel(flat, group))]
            scores[group.name] = _distances_within(rows[0])
        else:
            found = [along for along in _parameters_of(group) if norm == "whole_group" or along[0].endswith("/scale")]
            if not found:
                raise ValueError(
                    f"filter group {group.name!r} has no batch norm whose scale could be its score; use norm l2"
                )
            rows = [_rows(flat, group, along) for along in found]
            scores[group.name] = _whole_norm(rows) if norm == "whole_group" else _sum_of_scales(rows)
    return scores


def gate_derivatives(
    variables: Mapping[str, Any], gradients: Mapping[str, Any], groups: Sequence[FilterGroup]
) -> dict[str, jax.Array]:
    """Compute the derivative of a loss with respect to a gate on each filter: a factor of 1 on its activations.

    It is the sum of weight x gradient over the weights that read the filter.

    Args:
      variables: nested dicts of arrays, collection first ({"params": ...}).
      gradients: of the loss, {"params": ...}.
      groups: the model's filter groups.

    Returns:
      Group name -> float32 [n].

    Raises:
      ValueError: a group has no kernel that reads its filters.
    """
    flat, slopes, found = flatten_paths(variables), flatten_paths(gradients), dict[str, jax.Array]()
    for group in groups:
        readers = [along for along in _parameters_of(group) if _reads(group, along, flat)]
        if not readers:
            raise ValueError(f"filter group {group.name!r} has no kernel that reads its filters; use norm l2")
        products = [_rows(flat, group, along) * _rows(slopes, group, along) for along in readers]
        found[group.name] = jnp.sum(jnp.stack([values.sum(axis=1) for values in products]), axis=0)
    return found


def _reads(group: FilterGroup, along: _Along, flat: Mapping[str, Any]) -> bool:
    path, axis, _ = along
    if group.readers is not None:
        return path in group.readers
    return path.endswith("/kernel") and path in flat and axis != flat[path].ndim - 1


def _parameters_of(group: FilterGroup) -> list[_Along]:
    return [
        (path, axis, place) for path in group.axes if path.startswith("params/") for axis, place in group.places(path)
    ]


def _rows(flat: Mapping[str, Any], group: FilterGroup, along: _Along) -> jax.Array:
    """Return what a variable holds of each filter: float32 [n, entries]."""
    path, axis, place = along
    if path not in flat:
        raise ValueError(f"filter group {group.name!r} declares {path!r}, which is not among the variables")
    values = jnp.moveaxis(jnp.asarray(native(flat[path]), jnp.float32), axis, 0)
    if place is not None:
        values = values[place.entries(group.width)]
    if len(values) != group.width:
        raise ValueError(
            f"filter group {group.name!r}: {path!r} has {len(values)} filters, and the model declares {group.width}"
        )
    return values.reshape(group.width, -1)


@jax.jit
def _distances_within(filters: jax.Array) -> jax.Array:
    """Compute the mean distance of each filter from all: [n, entries] -> [n]."""
    # One filter at a time: the differences of all pairs would fill the memory.
    return jax.lax.map(lambda one: jnp.linalg.norm(filters - one, axis=1).mean(), filters)


@jax.jit
def _whole_norm(rows: list[jax.Array]) -> jax.Array:
    return jnp.sqrt(sum(jnp.square(values).sum(axis=1) for values in rows))


@jax.jit
def _sum_of_scales(rows: list[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack([jnp.abs(values).sum(axis=1) for values in rows]), axis=0)
