"""Axes of traced arrays as terms: which of them are one axis, and how a larger one is put together.

A term is an `Atom`, a `Product` of terms (an axis made by a reshape, major first) or a `Concatenation` of terms. Two
terms that must be the same axis are unified, as in type inference. Equal lengths alone never make two axes one.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Atom:
    """An axis that is not known to be made of others.

    Attributes:
      size: its length.
      frozen: why it must keep its length, None if it need not.
      mixed: which operation runs over it and would change its result if it were shorter; None if there is none.
      bound: the term that it was found to be.
    """

    size: int
    frozen: str | None = None
    mixed: str | None = None
    bound: "Term | None" = None


@dataclass(frozen=True, eq=False)
class Product:
    """An axis that runs over several, the last one fastest."""

    factors: tuple["Term", ...]

    @property
    def size(self) -> int:
        return math.prod(factor.size for factor in self.factors)


@dataclass(frozen=True, eq=False)
class Concatenation:
    """An axis of several, one after another."""

    parts: tuple["Term", ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


Term = Atom | Product | Concatenation


def resolve(term: Term) -> Term:
    """Follow what is known: an unbound atom, a product of terms that are no products, or a concatenation."""
    while isinstance(term, Atom) and term.bound is not None:
        term = term.bound
    if isinstance(term, Product):
        return product(term.factors)
    if isinstance(term, Concatenation):
        return concatenation(term.parts)
    return term


def product(factors: Iterable[Term]) -> Term:
    """Make the product of terms; factors of length 1 vanish beside others."""
    flat: list[Term] = []
    for factor in map(resolve, factors):
        flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
    flat = [factor for factor in flat if factor.size != 1] or flat[:1]
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concatenation(parts: Iterable[Term]) -> Term:
    """Make the concatenation of terms, without empty parts."""
    flat: list[Term] = []
    for part in map(resolve, parts):
        flat.extend(part.parts if isinstance(part, Concatenation) else (part,))
    flat = [part for part in flat if part.size]
    return flat[0] if len(flat) == 1 else Concatenation(tuple(flat))


def atoms(term: Term) -> Iterator[Atom]:
    """Yield the atoms of a term."""
    term = resolve(term)
    if isinstance(term, Atom):
        yield term
    else:
        for part in term.factors if isinstance(term, Product) else term.parts:
            yield from atoms(part)


def freeze(term: Term, reason: str) -> None:
    """Let the atoms of a term keep their length. The first reason stays."""
    for atom in atoms(term):
        atom.frozen = atom.frozen or reason


def mix(term: Term, reason: str) -> None:
    """Note that an operation runs over a term."""
    for atom in atoms(term):
        atom.mixed = atom.mixed or reason


def unify(one: Term, other: Term, reason: str) -> None:
    """Make two terms of equal length one axis; freeze both, for this reason, where no term can express that."""
    one, other = resolve(one), resolve(other)
    if one is other:
        return
    if isinstance(other, Atom) and not isinstance(one, Atom):
        one, other = other, one
    if isinstance(one, Atom):
        _bind(one, other, reason)
    elif isinstance(one, Product) and isinstance(other, Product):
        _unify_lists(one.factors, other.factors, Product, reason)
    elif isinstance(one, Concatenation) and isinstance(other, Concatenation):
        _unify_lists(one.parts, other.parts, Concatenation, reason)
    else:
        freeze(one, reason)
        freeze(other, reason)


def split_product(terms: Sequence[Term], sizes: Sequence[int], reason: str) -> list[Term]:
    """Return the axes of these lengths that a row-major array with the axes `terms` has when it is reshaped.

    Factors are merged and atoms are split where lengths allow; where they do not, everything is frozen for this reason.
    """
    whole = product(terms) if terms else Atom(1)
    factors = list(whole.factors) if isinstance(whole, Product) else [whole]
    axes: list[Term] = []
    for size in sizes:
        axis = _take(factors, size)
        if axis is None:
            for term in terms:
                freeze(term, reason)
            return [Atom(n, frozen=reason) for n in sizes]
        axes.append(axis)
    return axes


def slice_concatenation(term: Term, start: int, stop: int) -> Term | None:
    """Return the part of an axis from start to stop if it lies along seams of a concatenation; None if it does not."""
    term = resolve(term)
    if (start, stop) == (0, term.size):
        return term
    if not isinstance(term, Concatenation):
        return None
    taken, position = [], 0
    for part in term.parts:
        if start <= position and position + part.size <= stop:
            taken.append(part)
        elif position < stop and start < position + part.size:
            return None
        position += part.size
    return concatenation(taken) if taken else None


def _take(factors: list[Term], size: int) -> Term | None:
    """Take an axis of this length from the front of a list of factors, splitting an atom if need be."""
    if size == 1:
        return Atom(1)
    taken: list[Term] = []
    while size > 1:
        while factors and factors[0].size == 1:
            factors.pop(0)
        if not factors:
            return None
        first = factors.pop(0)
        if size % first.size == 0:
            taken.append(first)
            size //= first.size
        elif isinstance(first, Atom) and first.size % size == 0:
            parts = [Atom(n, first.frozen, first.mixed) for n in (size, first.size // size)]
            first.bound = Product(tuple(parts))
            taken.append(parts[0])
            factors.insert(0, parts[1])
            size = 1
        else:
            return None
    return product(taken)


def _bind(atom: Atom, term: Term, reason: str) -> None:
    if atom.size != term.size:
        freeze(atom, reason)
        freeze(term, reason)
    elif any(part is atom for part in atoms(term)):
        freeze(term, reason)
    else:
        if atom.frozen:
            freeze(term, atom.frozen)
        if atom.mixed:
            mix(term, atom.mixed)
        atom.bound = term


def _unify_lists(
    one: Sequence[Term], other: Sequence[Term], kind: type[Product] | type[Concatenation], reason: str
) -> None:
    """Unify the members of two products, or of two concatenations, with seams at equal places."""
    left, right = list(one), list(other)
    while left and right:
        first, second = left.pop(0), right.pop(0)
        if first.size == second.size:
            unify(first, second, reason)
            continue
        if first.size < second.size:
            left, right, first, second = right, left, second, first
        # The longer one must be made of the shorter one and something else.
        whole = first.size // second.size if kind is Product else first.size - second.size
        exact = kind is Concatenation or first.size % second.size == 0
        if not isinstance(first, Atom) or not exact:
            for term in (first, second, *left, *right):
                freeze(term, reason)
            return
        rest = Atom(whole, first.frozen, first.mixed)
        first.bound = kind((second, rest))
        if first.frozen:
            freeze(second, first.frozen)
        if first.mixed:
            mix(second, first.mixed)
        left.insert(0, rest)
    for term in (*left, *right):
        freeze(term, reason)
