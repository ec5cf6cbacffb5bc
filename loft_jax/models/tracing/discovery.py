"""Filter groups found by tracing: which filters of a network can be split, and why the others are left whole."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from loft_jax.filters import FilterGroup, Place, flatten_paths
from loft_jax.models.tracing.layout import Layout
from loft_jax.models.tracing.narrowing import compare
from loft_jax.models.tracing.rules import user_line
from loft_jax.models.tracing.terms import Atom, atoms, freeze, resolve, unify
from loft_jax.models.tracing.walk import Use, Value, Walk

# Traces the network in both modes for some shapes, or raises: (path -> shape) -> functions as in `Traces`.
Trial = Callable[[Mapping[str, tuple[int, ...]]], tuple[ClosedJaxpr, ClosedJaxpr]]
_DEFAULT_NAMES = ("kernel", "embedding", "weight", "w")


@dataclass(frozen=True)
class Axis:
    """Filters that lie on one axis wherever they occur.

    Attributes:
      name: of the layer that computes them, as its variables are named.
      width: number of filters.
      kind: "inner": one layer computes them and others read them; "stream": several layers add to them, as between
        residual blocks; "whole": they cannot be split.
      reason: why they are left whole, None for those that are offered.
      kernel: path of the variable that computes them.
      places: path -> where they lie, for every variable that they touch.
      flops: FLOPs per image of the operations that make them or read them.
      parameters: number of parameters that lie on them.
    """

    name: str
    width: int
    kind: str
    reason: str | None
    kernel: str
    places: Mapping[str, tuple[Place, ...]]
    flops: int
    parameters: int


@dataclass
class Traces:
    """A network as traced functions.

    Attributes:
      shapes: path -> shape of every variable.
      evaluation: variables by path, images, key -> logits.
      training: variables by path, images, key -> logits, updated statistics by path.
      updated: paths of the statistics.
      images: number of examples in the traced batch.
    """

    shapes: Mapping[str, tuple[int, ...]]
    evaluation: ClosedJaxpr
    training: ClosedJaxpr
    updated: tuple[str, ...]
    images: int


class Discovery:
    """What one walk through a network has found.

    Attributes:
      axes: what convolutions and products compute, in the order of the network.
    """

    def __init__(self, traces: Traces, trial: Trial):
        self._shapes = dict(traces.shapes)
        self._walk, self._training = Walk(), Walk()
        self._layout = Layout(self._read(traces))
        self._kernels = dict(self._name_atoms())
        self._images = traces.images
        self._refused = self._find_refused(trial)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(self._describe(atom, *named) for atom, named in self._kernels.items())

    def groups(self, widths: Mapping[str, int] | None = None) -> tuple[FilterGroup, ...]:
        """Return the groups that are offered, with these numbers of filters where they differ from the full ones."""
        sizes, groups = self._sizes(widths or {}), []
        for atom, (name, kernel) in self._kernels.items():
            if self._kind(atom)[0] != "inner" or atom in self._refused:
                continue
            axes = {
                path: _simplify(places, self._layout.shape(path, sizes), sizes(atom))
                for path, places in self._layout.places(atom, sizes).items()
            }
            readers = tuple(sorted({path for path, _ in self._reading(atom, sizes)}))
            groups.append(FilterGroup(name, sizes(atom), axes, partitioned=True, kernel=kernel, readers=readers))
        return tuple(groups)

    def shapes(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all variables for these numbers of filters."""
        sizes = self._sizes(widths)
        return {path: self._layout.shape(path, sizes) for path in self._shapes}

    def consumer_factors(
        self, factors: Mapping[str, float], widths: Mapping[str, int]
    ) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield path, axis and factors [length] by which kernels multiply what they read from the named groups."""
        sizes = self._sizes(widths)
        by_axis: dict[tuple[str, int], np.ndarray] = {}
        for atom, (name, _) in self._kernels.items():
            if name not in factors:
                continue
            for path, place in self._reading(atom, sizes):
                length = self._layout.shape(path, sizes)[place.axis]
                values = by_axis.setdefault((path, place.axis), np.ones(length, np.float32))
                values[place.entries(sizes(atom))] = factors[name]
        for (path, axis), values in by_axis.items():
            yield path, axis, values

    def _reading(self, atom: Atom, sizes: Callable[[Atom], int]) -> Iterator[tuple[str, Place]]:
        """Yield the variables that read the filters of an axis, with where these lie on what is summed over."""
        reading = {use.path for use in self._walk.consumed if _touches(use, atom)}
        for path, places in self._layout.places(atom, sizes).items():
            yield from ((path, place) for place in places if path in reading and self._reads(path, place.axis))

    def _reads(self, path: str, axis: int) -> bool:
        """Whether a product or convolution sums over this axis of a variable."""
        there = {id(atom) for atom in atoms(self._layout.axes[path][axis])}
        summed = (use for use in self._walk.consumed if use.path == path)
        return any(id(atom) in there for use in summed for atom in atoms(use.axis))

    def _read(self, traces: Traces) -> dict[str, tuple[Any, ...]]:
        """Walk through both modes; return the axes of every variable."""
        variables = {path: Value(tuple(Atom(n) for n in shape), path) for path, shape in sorted(traces.shapes.items())}
        # FLOPs are counted in evaluation alone: both modes have the same layers.
        modes = ((self._walk, traces.evaluation, ()), (self._training, traces.training, traces.updated))
        for walk, jaxpr, updated in modes:
            images = Value(tuple(Atom(n, frozen="the network's input") for n in jaxpr.in_avals[-2].shape))
            arguments = [*variables.values(), images, Value(())]
            logits, *statistics = walk.run(jaxpr.jaxpr, jaxpr.consts, arguments)
            for term in logits.axes:
                freeze(term, "the network's output")
            for path, value in zip(updated, statistics, strict=True):
                for before, after in zip(variables[path].axes, value.axes, strict=True):
                    unify(before, after, "an update of statistics")
        return {path: value.axes for path, value in variables.items()}

    def _name_atoms(self) -> Iterator[tuple[Atom, tuple[str, str]]]:
        """Name every axis that a layer computes by the first layer that does, and by number where that has several."""
        made: dict[str, list[Atom]] = {}
        for use in self._walk.produced:
            if use.path is not None:
                there = made.setdefault(use.path, [])
                there += [a for a in atoms(use.axis) if a.size > 1 and not any(a is known for known in there)]
        seen: set[int] = set()
        for path, there in made.items():
            for number, atom in enumerate(there):
                if id(atom) not in seen:
                    seen.add(id(atom))
                    yield atom, (_layer(path) + (f"[{number}]" if len(there) > 1 else ""), path)

    def _kind(self, atom: Atom) -> tuple[str, str | None]:
        layers = sorted({_layer(use.path) for use in self._walk.produced if use.path and _touches(use, atom)})
        if atom.frozen:
            return "whole", atom.frozen
        if len(layers) > 1:
            return "stream", f"computed by {len(layers)} layers together: {', '.join(layers)}"
        if atom.mixed:
            return "whole", atom.mixed
        if not any(_touches(use, atom) for use in self._walk.consumed):
            return "whole", "no layer reads them"
        return "inner", None

    def _find_refused(self, trial: Trial) -> dict[Atom, str]:
        """Trace the network with half of the filters; return the axes for which that fails, and how.

        Where it fails for all together, halves are tried, and so on: few trials find the few that are to blame, and of
        some that only fail together the last ones are.
        """
        inner = {name: atom for atom, (name, _) in self._kernels.items() if self._kind(atom)[0] == "inner"}
        refused: dict[Atom, str] = {}

        def accept(names: list[str], beside: dict[str, int]) -> dict[str, int]:
            half = beside | {name: max(1, inner[name].size // 2) for name in names}
            if (error := self._fails(trial, half)) is None:
                return half
            if len(names) > 1:
                middle = len(names) // 2
                return accept(names[middle:], accept(names[:middle], beside))
            others = " and fewer of others" if beside and self._fails(trial, {names[0]: half[names[0]]}) is None else ""
            refused[inner[names[0]]] = f"with {half[names[0]]} of them{others} the network {error}"
            return beside

        if inner:
            accept(list(inner), {})
        return refused

    def _fails(self, trial: Trial, widths: Mapping[str, int]) -> str | None:
        try:
            for walk, jaxpr in zip((self._walk, self._training), trial(self.shapes(widths)), strict=True):
                if (difference := compare(walk.results, jaxpr, self._sizes(widths))) is not None:
                    return f"computes something else: {difference}"
        except Exception as error:  # The user's code may raise anything.
            where = user_line(error)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            return f"cannot be built: {reason}" + (f" at {where}" if where else "")
        return None

    def _describe(self, atom: Atom, name: str, kernel: str) -> Axis:
        sizes = self._sizes({})
        places = self._layout.places(atom, sizes)
        kind, reason = self._kind(atom)
        if atom in self._refused:
            kind, reason = "whole", self._refused[atom]
        parameters = 0
        for path, there in places.items():
            if path.startswith("params/"):
                parameters += _count_entries(there, self._shapes[path], atom.size)
        uses = {id(use): use for use in (*self._walk.produced, *self._walk.consumed) if _touches(use, atom)}
        flops = sum({use.operation: use.flops * _share(use, atom) for use in uses.values()}.values())
        return Axis(name, atom.size, kind, reason, kernel, places, round(flops / self._images), parameters)

    def _sizes(self, widths: Mapping[str, int]) -> Callable[[Atom], int]:
        by_atom = {atom: widths[name] for atom, (name, _) in self._kernels.items() if name in widths}
        return lambda atom: by_atom.get(atom, atom.size)


def _layer(path: str) -> str:
    """Name the layer of a variable: its path without the collection, and without a usual name of a kernel."""
    *parents, last = path.split("/")[1:]
    return "/".join(parents if parents and last in _DEFAULT_NAMES else (*parents, last))


def _touches(use: Use, atom: Atom) -> bool:
    return any(part is atom for part in atoms(use.axis))


def _share(use: Use, atom: Atom) -> float:
    """Return the part of an axis that an atom has a part in."""
    term = resolve(use.axis)
    parts = getattr(term, "parts", (term,))
    return sum(part.size for part in parts if any(inner is atom for inner in atoms(part))) / term.size


def _simplify(places: tuple[Place, ...], shape: tuple[int, ...], width: int) -> int | tuple[Place, ...]:
    """Return the axis alone where the filters are the whole of it."""
    if len(places) == 1 and places[0] == Place(places[0].axis) and shape[places[0].axis] == width:
        return places[0].axis
    return places


def _count_entries(places: tuple[Place, ...], shape: tuple[int, ...], width: int) -> int:
    taken = np.zeros(shape, bool)
    for place in places:
        index: list[Any] = [slice(None)] * len(shape)
        index[place.axis] = place.entries(width).ravel()
        taken[tuple(index)] = True
    return int(taken.sum())


def trace(apply: Callable[..., Any], variables: Any, images: Any, key: Any) -> tuple[ClosedJaxpr, tuple[str, ...]]:
    """Trace `apply(variables, images, key)` -> (logits, statistics); return it, and the paths of the statistics."""
    flat = dict(sorted(flatten_paths(variables).items()))
    updated: list[str] = []

    def run(leaves: list[Any], images: Any, key: Any) -> list[Any]:
        logits, statistics = apply(dict(zip(flat, leaves, strict=True)), images, key)
        found = dict(sorted(flatten_paths(statistics).items()))
        updated.extend(found)
        return [logits, *found.values()]

    return jax.make_jaxpr(run)(list(flat.values()), images, key), tuple(updated)
