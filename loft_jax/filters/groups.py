"""Filter groups: they declare which variables a group of filters touches. Everything else is a function of this."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from flax.core import FrozenDict

# Collections like "params", which optimizers keep of every parameter.
MOMENTS = ("momentum", "second_moment")


@dataclass(frozen=True, order=True)
class Place:
    """Where a group's filters lie on an axis that also holds something else, or each of them several times.

    Filter f has the entries `offset + f * stride + sum of i * step`, with i below the count of each of `repeats`.
    Behind a flatten of 7 x 7 positions with 64 channels they are `Place(axis, repeats=((49, 64),))`; in a concatenation
    behind 32 other channels, `Place(axis, offset=32)`.

    Attributes:
      axis: the axis of the variable.
      offset: first entry of the first filter.
      stride: distance from one filter to the next.
      repeats: (count, step) pairs.
    """

    axis: int
    offset: int = 0
    stride: int = 1
    repeats: tuple[tuple[int, int], ...] = ()

    def entries(self, width: int) -> np.ndarray:
        """Return the entries of each of `width` filters, ascending: int32 [width, entries of a filter]."""
        entries = self.offset + self.stride * np.arange(width, dtype=np.int32)[:, None]
        for count, step in self.repeats:
            steps = step * np.arange(count, dtype=np.int32)
            entries = (entries[:, :, None] + steps).reshape(width, -1)
        return np.sort(entries, axis=1)

    def spread(self, outer: int, length: int, inner: int) -> "Place":
        """Return the place on an axis that runs over `outer` copies of this one, of this length, `inner` times each."""
        repeats = tuple((count, step * inner) for count, step in self.repeats)
        repeats += tuple(pair for pair in ((outer, length * inner), (inner, 1)) if pair[0] > 1)
        return Place(self.axis, self.offset * inner, self.stride * inner, repeats)

    def entries_of_a_filter(self) -> int:
        """Count the entries of one filter."""
        return math.prod(count for count, _ in self.repeats)


@dataclass(frozen=True)
class FilterGroup:
    """The filters of one hidden layer, and every axis they run along. Frozen and hashable: a static argument of jit.

    Attributes:
      name: "stage2/block2"; stages and blocks count from 1.
      width: number n of filters in the group.
      axes: path of a variable, slash-joined from its collection ("params/stage2_block2/conv1/kernel"), to the axis
        (a non-negative int) its filters run along; or to a `Place`, or a tuple of places, where the filters are not
        the whole axis, one after another.
      partitioned: whether LoFT splits the group over the workers under `loft.partition: paper`.
      kernel: path of the kernel that computes the filters; None if it is the one path in `axes` that ends in "/kernel"
        and whose axis is its last.
      readers: paths of the kernels that read the filters; None if they are the paths in `axes` that end in "/kernel"
        and whose axis is not their last.
    """

    name: str
    width: int
    axes: Mapping[str, int | Place | tuple[Place, ...]]
    partitioned: bool
    kernel: str | None = None
    readers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"filter group {self.name!r}: width={self.width} must be at least 1")
        for path in self.axes:
            for axis, _ in self.places(path):
                if axis < 0:
                    raise ValueError(f"filter group {self.name!r}: axis {axis} of {path!r} must not be negative")
        object.__setattr__(self, "axes", FrozenDict(self.axes))

    def places(self, path: str) -> tuple[tuple[int, Place | None], ...]:
        """Return the axes of a variable that the filters run along, and where they lie on each; None for all of it."""
        declared = self.axes[path]
        if isinstance(declared, int):
            return ((declared, None),)
        return tuple((place.axis, place) for place in (declared if isinstance(declared, tuple) else (declared,)))


def with_moments(groups: Iterable[FilterGroup]) -> tuple[FilterGroup, ...]:
    """Return the same groups, which in the collections `MOMENTS` also touch what they touch in "params"."""
    return tuple(replace(group, axes={**group.axes, **_axes_of_moments(group)}) for group in groups)


def _axes_of_moments(group: FilterGroup) -> dict[str, int | Place | tuple[Place, ...]]:
    params = {path.removeprefix("params/"): a for path, a in group.axes.items() if path.startswith("params/")}
    return {f"{moment}/{path}": axis for moment in MOMENTS for path, axis in params.items()}
