"""Selection of the filters that stay when a share of them is removed. Imports no JAX."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

Scope, Norm = Literal["group", "global"], Literal["l2", "l1"]
SCOPES, NORMS = get_args(Scope), get_args(Norm)


def draw_kept(scores: Mapping[str, np.ndarray], ratio: float, scope: str) -> dict[str, list[int]]:
    """Choose the filters that stay when a share of them, those with the lowest scores, is removed.

    Args:
      scores: group name -> float [n], finite.
      ratio: share removed, in [0, 1).
      scope: "group": of each group max(1, n - floor(ratio n)) filters stay. "global": so many of the filters of all
        groups together, by scores divided by their group's mean; the best filter of every group stays.

    Returns:
      Group name -> ascending indices, at least one. Of filters with equal scores the lower index stays.

    Raises:
      ValueError: ratio or scope out of range.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio={ratio}: must be in [0, 1), the share of filters removed; try 0.5")
    if scope == "group":
        chosen = {name: _order(values)[: kept_count(len(values), ratio)] for name, values in scores.items()}
    elif scope == "global":
        chosen = _draw_globally(scores, ratio)
    else:
        raise ValueError(f"scope={scope!r}: must be one of {', '.join(SCOPES)}")
    return {name: sorted(int(i) for i in indices) for name, indices in chosen.items()}


def kept_count(n: int, ratio: float) -> int:
    """Count the filters of n that stay when this share is removed: max(1, n - floor(ratio n))."""
    # As a float, 0.29 * 100 is a little less than 29.
    return max(1, n - math.floor(ratio * n + 1e-9))


def kept_overlaps(kept: Sequence[Sequence[int]], n: int) -> np.ndarray:
    """Compute intersection over union of each pair of kept sets [T] of n filters: float32 [T, T]."""
    held = np.zeros((len(kept), n), np.float32)
    for row, indices in zip(held, kept, strict=True):
        row[list(indices)] = 1
    shared, sizes = held @ held.T, held.sum(axis=1)
    return shared / (sizes[:, None] + sizes[None, :] - shared)


def _draw_globally(scores: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    names = list(scores)
    # In a group whose filters are all zero the mean is zero: its scores stay zero.
    relative = [values / (values.mean() or 1) for values in scores.values()]
    best = [_order(values)[0] for values in scores.values()]
    owner = np.repeat(np.arange(len(names)), [len(values) for values in relative])
    index = np.concatenate([np.arange(len(values)) for values in relative])
    reserved = index == np.array(best)[owner]
    order = np.lexsort((-np.concatenate(relative), ~reserved))
    order = order[: max(len(names), kept_count(len(order), ratio))]
    return {name: index[order[owner[order] == number]] for number, name in enumerate(names)}


def _order(values: Any) -> np.ndarray:
    return np.argsort(-np.asarray(values), kind="stable")
