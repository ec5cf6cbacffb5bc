"""The filter groups of any network, with reasons: `find_filter_groups` and `explain_filter_groups`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from loft_jax.filters import FilterGroup
from loft_jax.models.declared import make_network
from loft_jax.models.linen import LinenSource
from loft_jax.models.loading import module_source
from loft_jax.models.nnx import NnxSource
from loft_jax.models.source import Source
from loft_jax.models.traced import TracedNetwork, discover
from loft_jax.models.tracing.discovery import Axis

_HEADER = ("layer", "filters", "kind", "parameters", "MFLOPs", "variables, or why it is left whole")


def find_filter_groups(model: Any, images: Any) -> tuple[FilterGroup, ...]:
    """Find the filter groups of a network by tracing it; nothing is computed.

    Args:
      model: a Flax Linen module, a Flax NNX module, or a function from `nnx.Rngs` to one.
      images: an example of its input, [batch, height, width, channels] or [batch, features], or a
        `jax.ShapeDtypeStruct` of that shape. The length of the batch does not matter.

    Returns:
      The groups that can be split, in network order, each tried with half of its filters; of a network that declares
      its groups, those. What is left whole, and why, is told by `explain_filter_groups`.

    Raises:
      TypeError: the model is none of these.
      ValueError: it cannot be called with such images, does not return logits [batch, classes], or declares groups
        that it does not have.
    """
    return explain_filter_groups(model, images).groups


def explain_filter_groups(model: Any, images: Any) -> "Explanation":
    """Find the filter groups of a network, and say why other filters are left whole. Arguments as above."""
    image_shape = tuple(images.shape[1:])
    network = model if isinstance(model, TracedNetwork) else make_network(_source(model), image_shape, jnp.float32)
    return explain(network, image_shape)


def _source(model: Any) -> Source:
    """Return a module of any origin as a source. Raises TypeError for another object."""
    if isinstance(model, nn.Module | nnx.Module):
        return module_source(model)
    if isinstance(model, Callable):
        return NnxSource(model, getattr(model, "__name__", "network"))
    raise TypeError(
        f"{type(model).__name__}: must be a Flax Linen module, a Flax NNX module, or a function of nnx.Rngs that "
        "makes one"
    )


def explain(network: Any, image_shape: tuple[int, ...]) -> "Explanation":
    """Explain the groups of a network; one that declares them is traced beside, for what the others are."""
    if isinstance(network, TracedNetwork):
        return Explanation(network.filter_groups(), network.discovery.axes, declared=False)
    assert isinstance(network, nn.Module)
    axes = discover(LinenSource(network), image_shape).axes
    groups = network.filter_groups()
    names = {a.kernel: group.name for group in groups for a in axes if set(a.places) == set(group.axes)}
    return Explanation(groups, axes, declared=True, names=names)


@dataclass(frozen=True)
class Explanation:
    """The filters of a network; `str` of it is a table.

    Attributes:
      groups: those that can be split.
      axes: everything that convolutions and dense layers compute, in network order.
      declared: whether the network declares its groups.
      names: path of a kernel -> name of the declared group that it computes.
    """

    groups: tuple[FilterGroup, ...]
    axes: tuple[Axis, ...]
    declared: bool
    names: Any = None

    def name(self, axis: Axis) -> str:
        """Return the name of a group as the run has it."""
        return (self.names or {}).get(axis.kernel, axis.name)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of the table."""
        return [
            (
                self.name(axis),
                str(axis.width),
                axis.kind,
                f"{axis.parameters:,}",
                f"{axis.flops / 1e6:,.2f}",
                axis.reason or ", ".join(_describe(path, places) for path, places in axis.places.items()),
            )
            for axis in self.axes
        ]

    def __str__(self) -> str:
        rows = [_HEADER, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if column in (1, 3, 4) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=False))
            ]
            lines.append("  ".join([*cells, row[-1]]))
        offered = sum(axis.kind == "inner" for axis in self.axes)
        how = "declared by the network" if self.declared else "found by tracing"
        lines.append(f"{len(self.groups)} filter groups, {how}; {len(self.axes) - offered} layers are left whole")
        return "\n".join(lines)


def _describe(path: str, places: Sequence[Any]) -> str:
    where = "+".join(
        str(place.axis)
        + (f" from {place.offset}" if place.offset else "")
        + (f" x{place.entries_of_a_filter()}" if place.repeats else "")
        for place in places
    )
    return f"{path}[{where}]"
