"""Which weights or filters a level removes: pure functions of scores and masks. Imports no JAX.

A mask has a name, that of a layer or of a filter group, and is True where the weight or filter exists.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from loft_jax.errors import UserError, format_value

Masks = dict[str, np.ndarray]
Scores = Mapping[str, np.ndarray]

_SHOWN = 20


@dataclass(frozen=True)
class Pool:
    """Layers, or filter groups, from which a share is removed together."""

    names: tuple[str, ...]
    rate: float


def make_pools(names: Sequence[str], rates: Mapping[str, float | None], scope: str, what: str) -> tuple[Pool, ...]:
    """Find from which layers which share is removed together.

    Args:
      names: of all layers.
      rates: pattern -> share, or None for layers that are left whole; the last pattern that matches a name counts.
      scope: "layer": each layer is a pool; "global": all layers together for which the same pattern counts.
      what: what the names name, for messages.

    Raises:
      UserError: a pattern matches no layer, or no layer would lose anything.
    """
    for pattern in rates:
        if not any(fnmatchcase(name, pattern) for name in names):
            more = ", ..." if len(names) > _SHOWN else ""
            raise UserError(
                f"lottery.rates: the pattern {format_value(pattern)} matches no {what}; there are "
                f"{', '.join(names[:_SHOWN]) or 'none'}{more}"
            )
    by_pattern: dict[str, list[str]] = {}
    for name in names:
        matching = [pattern for pattern in rates if fnmatchcase(name, pattern)]
        if matching and rates[matching[-1]] is not None:
            by_pattern.setdefault(matching[-1], []).append(name)
    if not by_pattern:
        raise UserError(f"lottery.rates: leaves every {what} whole; give one a share, as *=0.2")
    pools = []
    for pattern, found in by_pattern.items():
        rate = rates[pattern]
        assert rate is not None
        together = [tuple(found)] if scope == "global" else [(name,) for name in found]
        pools += [Pool(some, rate) for some in together]
    return tuple(pools)


def count_removed(remaining: int, rate: float) -> int:
    """Count what a level removes: the share of what is left, rounded to nearest, at least one."""
    return max(1, math.floor(remaining * rate + 0.5))


def check_levels(sizes: Mapping[str, int], pools: Sequence[Pool], levels: int, what: str) -> None:
    """Raise UserError, naming layer and level, if one of the levels would leave nothing of a layer.

    Of layers that are pruned together it can only be said beforehand that too little is left for all of them.

    Args:
      sizes: name -> number of its weights or filters.
      what: what these are.
    """
    for pool in pools:
        left = sum(sizes[name] for name in pool.names)
        for level in range(1, levels + 1):
            left -= count_removed(left, pool.rate)
            if left < len(pool.names):
                raise UserError(_emptied(", ".join(pool.names), level, levels, what))


def remove_smallest(masks: Masks, scores: Scores, pools: Sequence[Pool], level: int, levels: int, what: str) -> Masks:
    """Remove the share of each pool that has the smallest scores; of equal scores those with the higher index.

    Args:
      masks: name -> bool array.
      scores: name -> float array of the same shape; only those where the mask is True are looked at.
      pools: what is pruned; other masks stay as they are.
      level, levels, what: for messages: the number of the level, that of the last, what is removed.

    Raises:
      UserError: nothing of a layer would be left, in a pool of several.
    """
    pruned = dict(masks)
    for pool in pools:
        kept = np.concatenate([masks[name].ravel() for name in pool.names])
        values = np.concatenate([np.asarray(scores[name]).ravel() for name in pool.names])
        there = np.flatnonzero(kept)[::-1]
        smallest = there[np.argsort(values[there], kind="stable")[: count_removed(len(there), pool.rate)]]
        kept[smallest] = False
        ends = np.cumsum([masks[name].size for name in pool.names])[:-1]
        for name, part in zip(pool.names, np.split(kept, ends), strict=True):
            if not part.any():
                raise UserError(_emptied(name, level, levels, what))
            pruned[name] = part.reshape(masks[name].shape)
    return pruned


def keep_largest(scores: Scores, masks: Masks) -> Masks:
    """Make masks with as many True entries as these in each layer, where its scores are largest."""
    drawn = {}
    for name, mask in masks.items():
        order = np.argsort(-np.asarray(scores[name]).ravel(), kind="stable")
        drawn[name] = _mask_of(order, mask)
    return drawn


def keep_drawn(orders: Mapping[str, np.ndarray], masks: Masks) -> Masks:
    """Make masks with as many True entries as these in each layer: the first of its order.

    Args:
      orders: name -> permutation of the indices of the layer's entries.
    """
    return {name: _mask_of(np.asarray(orders[name]), mask) for name, mask in masks.items()}


def _mask_of(order: np.ndarray, like: np.ndarray) -> np.ndarray:
    flat = np.zeros(like.size, bool)
    flat[order[: int(like.sum())]] = True
    return flat.reshape(like.shape)


def _emptied(name: str, level: int, levels: int, what: str) -> str:
    return (
        f"lottery.levels={levels}: level {level} would remove the last {what} of {name}; use fewer levels, "
        "a lower share in lottery.rates, or leave it whole with the share none"
    )
