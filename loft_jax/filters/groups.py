"""Filter groups: they declare which variables a group of filters touches. Everything else is a function of this."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from flax.core import FrozenDict


@dataclass(frozen=True)
class FilterGroup:
    """The filters of one hidden layer, and every axis they run along. Frozen and hashable: a static argument of jit.

    Attributes:
      name: "stage2/block2"; stages and blocks count from 1.
      width: number n of filters in the group.
      axes: path of a variable, slash-joined from its collection ("params/stage2_block2/conv1/kernel"), to the axis
        (a non-negative int) its filters run along.
      partitioned: whether LoFT splits the group over the workers under `loft.partition: paper`.
    """

    name: str
    width: int
    axes: Mapping[str, int]
    partitioned: bool

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"filter group {self.name!r}: width={self.width} must be at least 1")
        for path, axis in self.axes.items():
            if axis < 0:
                raise ValueError(f"filter group {self.name!r}: axis {axis} of {path!r} must not be negative")
        object.__setattr__(self, "axes", FrozenDict(self.axes))


def filter_axes(groups: Iterable[FilterGroup]) -> dict[str, list[tuple[int, str]]]:
    """Map the path of each variable that a group touches to its (axis, group name) pairs, axes ascending."""
    axes: dict[str, list[tuple[int, str]]] = {}
    for group in groups:
        for path, axis in group.axes.items():
            axes.setdefault(path, []).append((axis, group.name))
    return {path: sorted(pairs) for path, pairs in axes.items()}


def with_momentum(groups: Iterable[FilterGroup]) -> tuple[FilterGroup, ...]:
    """Return the same groups, which in the collection "momentum" also touch what they touch in "params"."""
    return tuple(
        replace(group, axes={**group.axes, **{_momentum_path(p): a for p, a in group.axes.items() if _is_param(p)}})
        for group in groups
    )


def _is_param(path: str) -> bool:
    return path.startswith("params/")


def _momentum_path(path: str) -> str:
    return "momentum/" + path.removeprefix("params/")
