"""How the axes of variables are put together from filters, for any number of filters."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from loft_jax.filters import Place
from loft_jax.models.tracing.terms import Atom, Product, Term, resolve

# Number of filters of an axis that is not made of others.
Sizes = Callable[[Atom], int]


@dataclass(frozen=True)
class Layout:
    """The axes of every variable.

    Attributes:
      axes: path -> the term of each axis.
    """

    axes: Mapping[str, tuple[Term, ...]]

    def shape(self, path: str, sizes: Sizes) -> tuple[int, ...]:
        """Return the shape of a variable if atoms have these sizes."""
        return tuple(size_of(term, sizes) for term in self.axes[path])

    def places(self, atom: Atom, sizes: Sizes) -> dict[str, tuple[Place, ...]]:
        """Return where the filters of an atom lie: path -> places, for every variable that they touch."""
        found = {}
        for path, terms in self.axes.items():
            places = tuple(replace(p, axis=axis) for axis, term in enumerate(terms) for p in _places(term, atom, sizes))
            if places:
                found[path] = places
        return found


def size_of(term: Term, sizes: Sizes) -> int:
    """Return the length of an axis if atoms have these sizes."""
    term = resolve(term)
    if isinstance(term, Atom):
        return sizes(term)
    if isinstance(term, Product):
        return math.prod(size_of(factor, sizes) for factor in term.factors)
    return sum(size_of(part, sizes) for part in term.parts)


def _places(term: Term, atom: Atom, sizes: Sizes) -> Iterator[Place]:
    term = resolve(term)
    if isinstance(term, Atom):
        if term is atom:
            yield Place(axis=0)
    elif isinstance(term, Product):
        for number, factor in enumerate(term.factors):
            outer = math.prod(size_of(f, sizes) for f in term.factors[:number])
            inner = math.prod(size_of(f, sizes) for f in term.factors[number + 1 :])
            length = size_of(factor, sizes)
            for place in _places(factor, atom, sizes):
                yield place.spread(outer, length, inner)
    else:
        offset = 0
        for part in term.parts:
            for place in _places(part, atom, sizes):
                yield replace(place, offset=offset + place.offset)
            offset += size_of(part, sizes)
