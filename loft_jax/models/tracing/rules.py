"""A rule for each primitive that moves axes: the terms of its results from those of its operands."""

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import jax
from jax._src import source_info_util
from jax.extend.core import JaxprEqn

from loft_jax.models.tracing.terms import (
    Atom,
    Term,
    concatenation,
    freeze,
    mix,
    slice_concatenation,
    split_product,
    unify,
)

# Lines of these are not what a user would look for.
_MODELS, _JAX = Path(__file__).parents[1], str(Path(jax.__file__).parent)
_HIDDEN = (
    str(Path(flax.__file__).parent),
    *(str(_MODELS / name) for name in ("linen.py", "nnx.py", "traced.py", "convolution.py", "norm.py")),
)


@dataclass(frozen=True, eq=False)
class Value:
    """An array in the traced function.

    Attributes:
      axes: the term of each axis.
      path: the variable it is, or is computed from element by element; None for others.
    """

    axes: tuple[Term, ...]
    path: str | None = None


def shape_of(equation: JaxprEqn) -> tuple[int, ...]:
    """Return the shape of an operation's first result."""
    aval: Any = equation.outvars[0].aval
    return aval.shape


def constant(aval: Any) -> Value:
    return Value(tuple(Atom(n, frozen="a constant") for n in getattr(aval, "shape", ())))


def fresh(aval: Any) -> Value:
    return Value(tuple(Atom(n) for n in getattr(aval, "shape", ())))


def describe(equation: JaxprEqn) -> str:
    """Name the primitive and the user's line."""
    frames = list(source_info_util.user_frames(equation.source_info.traceback))
    outside = [frame for frame in frames if not frame.file_name.startswith(_HIDDEN)]
    where = [f" at {Path(frame.file_name).name}:{frame.start_line}" for frame in outside or frames]
    return f"{equation.primitive.name}{where[0] if where else ''}"


def locate(equation: JaxprEqn, caller: JaxprEqn | None) -> JaxprEqn:
    """Return the equation with the caller's line if it has none: the body of a function of JAX's own may know none."""
    if caller is None or any(source_info_util.user_frames(equation.source_info.traceback)):
        return equation
    return equation.replace(source_info=caller.source_info)


def user_line(error: BaseException) -> str | None:
    """Name the innermost line of the user's code in the traceback of an error."""
    lines = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_HIDDEN, _JAX, str(_MODELS / "tracing"), "<"))
    ]
    return f"{Path(lines[-1][0]).name}:{lines[-1][1]}" if lines else None


def unify_values(one: Value, other: Value, reason: str) -> None:
    for left, right in zip(one.axes, other.axes, strict=True):
        if left.size == right.size:
            unify(left, right, reason)


def freeze_unknown(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    """Freeze everything that an operation without a rule touches."""
    reason = describe(equation)
    for value in operands:
        for term in value.axes:
            freeze(term, reason)
    shapes = [getattr(result.aval, "shape", ()) for result in equation.outvars]
    return [Value(tuple(Atom(n, frozen=reason) for n in shape)) for shape in shapes]


def apply_elementwise(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    shape, reason = shape_of(equation), describe(equation)
    full = [value for value in operands if value.axes]
    axes: list[Term] = []
    for axis, size in enumerate(shape):
        # An axis of length 1 stretches.
        there = [value.axes[axis] for value in full if value.axes[axis].size == size] or [Atom(size)]
        for term in there[1:]:
            unify(there[0], term, reason)
        axes.append(there[0])
    # What is computed from variables alone is still a variable, as a kernel with its norm divided out.
    path = full[0].path if full and all(value.path for value in full) else None
    return [Value(tuple(axes), path) for _ in equation.outvars]


def _pass_on(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    return list(operands)


def _broadcast(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, shape = operands[0], equation.params["shape"]
    axes: list[Term] = [Atom(n) for n in shape]
    for axis, target in enumerate(equation.params["broadcast_dimensions"]):
        if value.axes[axis].size == shape[target]:
            axes[target] = value.axes[axis]
    return [Value(tuple(axes), value.path)]


def _reshape(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value = operands[0]
    axes = split_product(value.axes, shape_of(equation), describe(equation))
    return [Value(tuple(axes), value.path)]


def _transpose(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value = operands[0]
    return [Value(tuple(value.axes[axis] for axis in equation.params["permutation"]), value.path)]


def _squeeze(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, gone = operands[0], equation.params["dimensions"]
    return [Value(tuple(term for axis, term in enumerate(value.axes) if axis not in gone), value.path)]


def _reduce(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    params, reason = equation.params, describe(equation)
    gone = params["axes"] if "axes" in params else params["dimensions"]
    operands = [value for value in operands if value.axes]
    for value in operands:
        for axis in gone:
            mix(value.axes[axis], f"{reason} runs over them")
    kept = tuple(term for axis, term in enumerate(operands[0].axes) if axis not in gone)
    # A kernel is still one when its mean is subtracted.
    path = operands[0].path if all(value.path for value in operands) else None
    return [Value(kept, path) for _ in equation.outvars]


def _run_along(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    """Cumulative sums, sorting, reversal: results as large as the operands, with an order along one axis."""
    params, reason = equation.params, describe(equation)
    along = params.get("axis", params.get("dimension", params.get("dimensions")))
    for axis in along if isinstance(along, tuple) else (along,):
        for value in operands:
            freeze(value.axes[axis], f"their order matters to {reason}")
    return [Value(value.axes, value.path) for value in operands[: len(equation.outvars)]]


def _pool(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, params, shape = operands[0], equation.params, shape_of(equation)
    reason = describe(equation)
    windows = zip(value.axes, params["window_dimensions"], shape, strict=True)
    axes: list[Term] = []
    for axis, (term, window, size) in enumerate(windows):
        whole = window == 1 and size == term.size and params["window_strides"][axis] == 1
        if not whole:
            freeze(term, f"windows of {reason}")
        axes.append(term if whole else Atom(size, frozen=f"windows of {reason}"))
    return [Value(tuple(axes)) for _ in equation.outvars]


def _concatenate(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    dimension, reason = equation.params["dimension"], describe(equation)
    first = operands[0]
    for value in operands[1:]:
        for axis, (one, other) in enumerate(zip(first.axes, value.axes, strict=True)):
            if axis != dimension:
                unify(one, other, reason)
    axes = list(first.axes)
    axes[dimension] = concatenation(value.axes[dimension] for value in operands)
    return [Value(tuple(axes))]


def _slice_axis(term: Term, start: int, stop: int, step: int, reason: str) -> Term:
    part = slice_concatenation(term, start, stop) if step == 1 else None
    if part is not None:
        return part
    freeze(term, reason)
    return Atom(len(range(start, stop, step)), frozen=reason)


def _slice(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    params, reason = equation.params, describe(equation)
    steps = params["strides"] or (1,) * len(operands[0].axes)
    places = zip(operands[0].axes, params["start_indices"], params["limit_indices"], steps, strict=True)
    return [Value(tuple(_slice_axis(term, start, stop, step, reason) for term, start, stop, step in places))]


def _split(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, axis, reason = operands[0], equation.params["axis"], describe(equation)
    results, start = [], 0
    for size in equation.params["sizes"]:
        axes = list(value.axes)
        axes[axis] = _slice_axis(axes[axis], start, start + size, 1, reason)
        results.append(Value(tuple(axes)))
        start += size
    return results


def _slice_at(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    reason, sizes = describe(equation), equation.params["slice_sizes"]
    places = zip(operands[0].axes, sizes, strict=True)
    return [Value(tuple(_slice_axis(term, 0, size, 1, reason) if size == term.size else _cut(term, size, reason)
                        for term, size in places))]  # fmt: skip


def _cut(term: Term, size: int, reason: str) -> Atom:
    freeze(term, reason)
    return Atom(size, frozen=reason)


def _pad(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, reason, shape = operands[0], describe(equation), shape_of(equation)
    places = zip(value.axes, equation.params["padding_config"], shape, strict=True)
    return [Value(tuple(_cut(term, size, reason) if any(config) else term for term, config, size in places))]


def _gather(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    """Look up rows: axes that are taken whole keep their term."""
    table, reason, numbers = operands[0], describe(equation), equation.params["dimension_numbers"]
    sizes, shape = equation.params["slice_sizes"], shape_of(equation)
    gone = (*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ()))
    axes: list[Term] = [Atom(n, frozen=reason) for n in shape]
    kept = [axis for axis in range(len(table.axes)) if axis not in gone]
    for target, axis in zip(numbers.offset_dims, kept, strict=True):
        axes[target] = table.axes[axis] if sizes[axis] == table.axes[axis].size else _cut(
            table.axes[axis], sizes[axis], reason
        )  # fmt: skip
    for axis in gone:
        freeze(table.axes[axis], reason)
    for term in operands[1].axes:
        freeze(term, reason)
    return [Value(tuple(axes))]


def _count(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    along = equation.params["dimension"]
    shape = shape_of(equation)
    return [Value(tuple(Atom(n, frozen=describe(equation) if axis == along else None) for axis, n in enumerate(shape)))]


Rule = Callable[[JaxprEqn, list[Value]], list[Value]]
RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "concatenate": _concatenate,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _slice_at,
    "pad": _pad,
    "gather": _gather,
    "iota": _count,
    "optimization_barrier": _pass_on,
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "rev"), _run_along),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window"), _pool),
    **dict.fromkeys(
        (
            *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"),
            *("argmax", "argmin", "reduce"),
        ),
        _reduce,
    ),
}
# Functions that are walked into; their body is one of `BODIES`.
CALLS = frozenset(
    re.findall(
        r"\w+",
        """
    jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr
    custom_lin run_state
        """,
    )
)
BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
# Results that no operand has a part in, as large as the code says.
SOURCES = frozenset(
    re.findall(
        r"\w+",
        """
    threefry2x32 random_bits rng_bit_generator rng_uniform platform_index
        """,
    )
)
# Primitives whose results are computed element by element.
ELEMENTWISE = frozenset(
    re.findall(
        r"\w+",
        """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt
    ceil clamp clz conj convert_element_type copy copy_p cos cosh device_put digamma div eq erf erf_inv erfc exp
    exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min mul
    ne neg nextafter not or polygamma population_count pow pvary real reduce_precision regularized_incomplete_beta
    rem round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin
    sinh sqrt square stop_gradient sub tan tanh xor
        """,
    )
)
