"""Whether a network with fewer filters computes the same: its trace against what the full one's terms predict.

Sizes in the user's code are gone from a trace. So a module may run with fewer filters, and yet group or scale them in
another way, as a group norm does whose number of groups stays.
"""

from collections.abc import Sequence

from jax.extend.core import ClosedJaxpr

from loft_jax.models.tracing.layout import Sizes, size_of
from loft_jax.models.tracing.rules import Value
from loft_jax.models.tracing.terms import Atom
from loft_jax.models.tracing.walk import Result, Walk


def compare(full: Sequence[Result], narrow: ClosedJaxpr, sizes: Sizes) -> str | None:
    """Return where a narrow network differs from what is predicted, None if it does not.

    Args:
      full: results of a walk through the full network.
      narrow: the same function of the narrow one.
      sizes: number of filters of every atom in the narrow one.
    """
    walk = Walk()
    walk.run(narrow.jaxpr, narrow.consts, [Value(tuple(Atom(n) for n in aval.shape)) for aval in narrow.in_avals])
    for expected, found in zip(full, walk.results, strict=False):
        if expected.primitive != found.primitive:
            return f"it does {found.where} where the full network does {expected.where}"
        shape, predicted = (
            tuple(axis.size for axis in found.axes),
            tuple(size_of(axis, sizes) for axis in expected.axes),
        )
        if shape != predicted:
            return f"{found.where} returns the shape {shape} where {predicted} is expected"
        if expected.numbers != found.numbers:
            numbers = [", ".join(result.numbers) for result in (found, expected)]
            return f"{found.where} takes the number {numbers[0]} where the full network takes {numbers[1]}"
    if len(full) != len(walk.results):
        return "it does other operations than the full network"
    return None
