"""From filters to entries: the one place that knows where a group's filters lie on the axes of variables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax.filters.groups import FilterGroup, Place


@dataclass(frozen=True)
class Part:
    """The filters of one group on an axis.

    Attributes:
      group: name of the group.
      width: number of its filters.
      place: where they lie; None if they are the whole axis.
    """

    group: str
    width: int
    place: Place | None


@dataclass(frozen=True)
class Cut:
    """One axis of a variable that is cut when filters are taken from it.

    Attributes:
      axis: the axis.
      parts: whose filters lie on it, by group name.
    """

    axis: int
    parts: tuple[Part, ...]

    @property
    def whole(self) -> bool:
        """Whether the axis is the filters of one group and nothing else."""
        return len(self.parts) == 1 and self.parts[0].place is None

    def entries(self, length: int, owned: Mapping[str, Any]) -> jax.Array:
        """Return the entries of an axis of this length that remain: int32, ascending.

        Args:
          length: of the axis.
          owned: group name -> ascending indices [k] of its filters, for each group of the cut; may be traced.
        """
        if self.whole:
            return owned[self.parts[0].group]
        fixed = np.flatnonzero(self.shared(length)).astype(np.int32)
        taken = [jnp.take(rows, owned[name], axis=0).reshape(-1) for name, rows in self._filters()]
        return jnp.sort(jnp.concatenate([fixed, *taken]))

    def shared(self, length: int) -> np.ndarray:
        """Say for each entry of an axis of this length whether no filter lies there: bool [length]."""
        free = np.full(length, not self.whole)
        for _, rows in self._filters():
            free[rows] = False
        return free

    def spread(self, length: int, of_filters: Mapping[str, jax.Array]) -> jax.Array:
        """Spread values of filters, group name -> [S, n], over the axis: [S, length], ones where no filter lies."""
        if self.whole:
            return of_filters[self.parts[0].group]
        first = of_filters[self.parts[0].group]
        values = jnp.ones((len(first), length), first.dtype)
        for name, rows in self._filters():
            values = values.at[:, rows].set(of_filters[name][:, :, None])
        return values

    def _filters(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the entries of the filters of each group that is not the whole axis: [n, entries of a filter]."""
        for part in self.parts:
            if part.place is not None:
                yield part.group, part.place.entries(part.width)

    def check(self, path: str, shape: Sequence[int]) -> None:
        """Raise ValueError unless a variable of this shape has the axis as the groups declare it."""
        length = shape[self.axis] if self.axis < len(shape) else None
        taken = np.zeros(length or 0, int)
        for part in self.parts:
            fits = length == part.width
            if part.place and length:
                entries = part.place.entries(part.width)
                if fits := bool((entries >= 0).all() and (entries < length).all()):
                    np.add.at(taken, entries.ravel(), 1)
            if not fits:
                raise ValueError(
                    f"filter group {part.group!r} has {part.width} filters along axis {self.axis} of {path!r}, whose "
                    f"shape is {tuple(shape)}"
                )
        if (len(self.parts) > 1 and (taken > 1).any()) or any(part.place is None for part in self.parts[1:]):
            names = ", ".join(repr(part.group) for part in self.parts)
            raise ValueError(f"filter groups {names}: overlap on axis {self.axis} of {path!r}")


def filter_cuts(groups: Iterable[FilterGroup]) -> dict[str, tuple[Cut, ...]]:
    """Map the path of each variable that a group touches to the axes that are cut, ascending."""
    found: dict[str, dict[int, list[Part]]] = {}
    for group in groups:
        for path in group.axes:
            for axis, place in group.places(path):
                found.setdefault(path, {}).setdefault(axis, []).append(Part(group.name, group.width, place))
    return {
        path: tuple(
            Cut(axis, tuple(sorted(parts, key=lambda part: part.group))) for axis, parts in sorted(axes.items())
        )
        for path, axes in found.items()
    }
