"""Walk through a traced function and say of every axis of every array which term it is.

Every primitive has a rule that makes the terms of its results from those of its operands, and unifies what must be one
axis. What no rule can express is frozen, with the primitive and the line of the user's code as the reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax._src import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from loft_jax.models.flops import count_equation
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


@dataclass(frozen=True, eq=False)
class Value:
    """An array in the traced function.

    Attributes:
      axes: the term of each axis.
      path: the variable it is, or is computed from element by element; None for others.
    """

    axes: tuple[Term, ...]
    path: str | None = None


@dataclass
class Use:
    """How products and convolutions use an axis of a variable: as what they make, or as what they sum over.

    Attributes:
      axis: the axis.
      path: the variable, None if the operand is none.
      flops: of the operation.
      operation: its number in the walk.
    """

    axis: Term
    path: str | None
    flops: int
    operation: int


@dataclass
class Walk:
    """What a walk has seen.

    Attributes:
      produced, consumed: the axes that convolutions and products make, and those that they sum over.
      operations: number of convolutions and products.
    """

    produced: list[Use] = field(default_factory=list)
    consumed: list[Use] = field(default_factory=list)
    operations: int = 0

    def run(self, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Walk through a function, given the values of its arguments; return those of its results."""
        values: dict[Var, Value] = {}
        for variable in jaxpr.constvars:
            values[variable] = _constant(variable.aval)
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(operand: Var | Literal) -> Value:
            return _constant(operand.aval) if isinstance(operand, Literal) else values[operand]

        for equation in jaxpr.eqns:
            results = self._step(equation, [read(operand) for operand in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(result) for result in jaxpr.outvars]

    def _step(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        name = equation.primitive.name
        if name in _CALLS:
            return self._call(equation, operands)
        if name == "cond":
            return self._choose(equation, operands)
        if name == "scan":
            return self._scan(equation, operands)
        if name == "dot_general":
            return self._multiply(equation, operands)
        if name == "conv_general_dilated":
            return self._convolve(equation, operands)
        if name in _ELEMENTWISE:
            return _apply_elementwise(equation, operands)
        if name.startswith("random_") or name in _SOURCES:
            return [_fresh(result.aval) for result in equation.outvars]
        return _RULES.get(name, _unknown)(equation, operands)

    def _call(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        inner = next(value for key in _BODIES if (value := equation.params.get(key)) is not None)
        return self._open(inner, operands[len(operands) - len(_jaxpr(inner).invars) :])

    def _open(self, inner: ClosedJaxpr | Jaxpr, operands: list[Value]) -> list[Value]:
        return self.run(_jaxpr(inner), getattr(inner, "consts", ()), operands)

    def _choose(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        platforms = equation.params.get("branches_platforms")
        if not platforms:
            return _unknown(equation, operands)
        # All branches of a choice by platform compute one thing: the form for no named platform says what.
        default = platforms.index(None) if None in platforms else len(platforms) - 1
        return self._open(equation.params["branches"][default], operands[1:])

    def _scan(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        params, reason = equation.params, _reason(equation)
        constants, carries = params["num_consts"], params["num_carry"]
        length = Atom(params["length"], frozen=f"repeated by {reason}")
        for value in operands[constants + carries :]:
            unify(value.axes[0], length, reason)
        carried = operands[constants : constants + carries]
        rows = [Value(value.axes[1:], value.path) for value in operands[constants + carries :]]
        results = self._open(params["jaxpr"], [*operands[:constants], *carried, *rows])
        for before, after in zip(carried, results[:carries], strict=True):
            _unify_values(before, after, reason)
        return results[:carries] + [Value((length, *value.axes)) for value in results[carries:]]

    def _multiply(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        (contracted, batched), reason = equation.params["dimension_numbers"], _reason(equation)
        left, right = operands
        self.operations += 1
        about = (count_equation(equation), self.operations)
        for pairs in (contracted, batched):
            for one, other in zip(*pairs, strict=True):
                unify(left.axes[one], right.axes[other], reason)
        free = []
        for value, summed, shared in zip(operands, contracted, batched, strict=True):
            kept = [axis for axis in range(len(value.axes)) if axis not in (*summed, *shared)]
            free += [value.axes[axis] for axis in kept]
            self.consumed += [Use(value.axes[axis], value.path, *about) for axis in summed]
            if value.path:
                self.produced += [Use(value.axes[axis], value.path, *about) for axis in kept]
        return [Value((*(left.axes[axis] for axis in batched[0]), *free))]

    def _convolve(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        params, reason = equation.params, _reason(equation)
        self.operations += 1
        about = (count_equation(equation), self.operations)
        images, kernel = operands
        numbers, groups = params["dimension_numbers"], params["feature_group_count"]
        entering, made = images.axes[numbers.lhs_spec[1]], kernel.axes[numbers.rhs_spec[0]]
        for axis in numbers.rhs_spec[2:]:
            freeze(kernel.axes[axis], f"the size of a kernel: {reason}")
        summed = kernel.axes[numbers.rhs_spec[1]]
        if params["batch_group_count"] > 1 or (groups > 1 and groups != entering.size):
            for term in (entering, made, summed):
                freeze(term, f"a grouped {reason}")
        elif groups > 1:
            self._convolve_depthwise(entering, made, reason)
        else:
            unify(entering, summed, reason)
            self.consumed.append(Use(summed, kernel.path, *about))
            self.produced.append(Use(made, kernel.path, *about))
        axes = [Atom(n, frozen=f"positions of {reason}") for n in equation.outvars[0].aval.shape]
        result: list[Term] = list(axes)
        result[numbers.out_spec[0]] = images.axes[numbers.lhs_spec[0]]
        result[numbers.out_spec[1]] = made
        return [Value(tuple(result))]

    @staticmethod
    def _convolve_depthwise(entering: Term, made: Term, reason: str) -> None:
        multiplier = made.size // entering.size
        if multiplier == 1:
            unify(entering, made, reason)
        else:
            for term in (entering, made):
                freeze(term, f"{multiplier} filters for each channel: {reason}")


def _jaxpr(function: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return function.jaxpr if isinstance(function, ClosedJaxpr) else function


def _constant(aval: Any) -> Value:
    return Value(tuple(Atom(n, frozen="a constant") for n in getattr(aval, "shape", ())))


def _fresh(aval: Any) -> Value:
    return Value(tuple(Atom(n) for n in getattr(aval, "shape", ())))


def _reason(equation: JaxprEqn) -> str:
    """Name the primitive and the user's line."""
    frame = source_info_util.user_frame(equation.source_info.traceback)
    where = "" if frame is None else f" at {frame.file_name.rsplit('/', 1)[-1]}:{frame.start_line}"
    return f"{equation.primitive.name}{where}"


def _unify_values(one: Value, other: Value, reason: str) -> None:
    for left, right in zip(one.axes, other.axes, strict=True):
        if left.size == right.size:
            unify(left, right, reason)


def _unknown(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    """Freeze everything that an operation without a rule touches."""
    reason = _reason(equation)
    for value in operands:
        for term in value.axes:
            freeze(term, reason)
    return [Value(tuple(Atom(n, frozen=reason) for n in result.aval.shape)) for result in equation.outvars]


def _apply_elementwise(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    full = [value for value in operands if value.axes]
    if not full:
        return [_fresh(result.aval) for result in equation.outvars]
    first, reason = full[0], _reason(equation)
    for value in full[1:]:
        _unify_values(first, value, reason)
    paths = {value.path for value in full if value.path}
    return [Value(first.axes, paths.pop() if len(paths) == 1 else None) for _ in equation.outvars]


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
    axes = split_product(value.axes, equation.outvars[0].aval.shape, _reason(equation))
    return [Value(tuple(axes), value.path)]


def _transpose(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value = operands[0]
    return [Value(tuple(value.axes[axis] for axis in equation.params["permutation"]), value.path)]


def _squeeze(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, gone = operands[0], equation.params["dimensions"]
    return [Value(tuple(term for axis, term in enumerate(value.axes) if axis not in gone), value.path)]


def _reduce(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    params, reason = equation.params, _reason(equation)
    gone = params["axes"] if "axes" in params else params["dimensions"]
    operands = [value for value in operands if value.axes]
    for value in operands:
        for axis in gone:
            mix(value.axes[axis], f"{reason} runs over them")
    kept = tuple(term for axis, term in enumerate(operands[0].axes) if axis not in gone)
    return [Value(kept) for _ in equation.outvars]


def _run_along(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    """Cumulative sums, sorting, reversal: results as large as the operands, with an order along one axis."""
    params, reason = equation.params, _reason(equation)
    along = params.get("axis", params.get("dimension", params.get("dimensions")))
    for axis in along if isinstance(along, tuple) else (along,):
        for value in operands:
            freeze(value.axes[axis], f"their order matters to {reason}")
    return [Value(value.axes) for value in operands[: len(equation.outvars)]]


def _pool(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, params, shape = operands[0], equation.params, equation.outvars[0].aval.shape
    reason = _reason(equation)
    windows = zip(value.axes, params["window_dimensions"], shape, strict=True)
    axes: list[Term] = []
    for axis, (term, window, size) in enumerate(windows):
        whole = window == 1 and size == term.size and params["window_strides"][axis] == 1
        if not whole:
            freeze(term, f"windows of {reason}")
        axes.append(term if whole else Atom(size, frozen=f"windows of {reason}"))
    return [Value(tuple(axes)) for _ in equation.outvars]


def _concatenate(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    dimension, reason = equation.params["dimension"], _reason(equation)
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
    params, reason = equation.params, _reason(equation)
    steps = params["strides"] or (1,) * len(operands[0].axes)
    places = zip(operands[0].axes, params["start_indices"], params["limit_indices"], steps, strict=True)
    return [Value(tuple(_slice_axis(term, start, stop, step, reason) for term, start, stop, step in places))]


def _split(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, axis, reason = operands[0], equation.params["axis"], _reason(equation)
    results, start = [], 0
    for size in equation.params["sizes"]:
        axes = list(value.axes)
        axes[axis] = _slice_axis(axes[axis], start, start + size, 1, reason)
        results.append(Value(tuple(axes)))
        start += size
    return results


def _slice_at(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    reason, sizes = _reason(equation), equation.params["slice_sizes"]
    places = zip(operands[0].axes, sizes, strict=True)
    return [Value(tuple(_slice_axis(term, 0, size, 1, reason) if size == term.size else _cut(term, size, reason)
                        for term, size in places))]  # fmt: skip


def _cut(term: Term, size: int, reason: str) -> Atom:
    freeze(term, reason)
    return Atom(size, frozen=reason)


def _pad(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    value, reason, shape = operands[0], _reason(equation), equation.outvars[0].aval.shape
    places = zip(value.axes, equation.params["padding_config"], shape, strict=True)
    return [Value(tuple(_cut(term, size, reason) if any(config) else term for term, config, size in places))]


def _gather(equation: JaxprEqn, operands: list[Value]) -> list[Value]:
    """Look up rows: axes that are taken whole keep their term."""
    table, reason, numbers = operands[0], _reason(equation), equation.params["dimension_numbers"]
    sizes, shape = equation.params["slice_sizes"], equation.outvars[0].aval.shape
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
    shape = equation.outvars[0].aval.shape
    return [Value(tuple(Atom(n, frozen=_reason(equation) if axis == along else None) for axis, n in enumerate(shape)))]


Rule = Callable[[JaxprEqn, list[Value]], list[Value]]
_RULES: dict[str, Rule] = {
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
_CALLS = frozenset(
    [
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_lin",
        "run_state",
    ]
)
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_SOURCES = frozenset(["threefry2x32", "random_bits", "rng_bit_generator", "rng_uniform", "platform_index"])
_ELEMENTWISE = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "bessel_i0e",
        "bessel_i1e",
        "cbrt",
        "ceil",
        "clamp",
        "clz",
        "conj",
        "convert_element_type",
        "copy",
        "copy_p",
        "cos",
        "cosh",
        "device_put",
        "digamma",
        "div",
        "eq",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "igamma",
        "igammac",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "lgamma",
        "log",
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "nextafter",
        "not",
        "or",
        "polygamma",
        "population_count",
        "pow",
        "pvary",
        "real",
        "reduce_precision",
        "regularized_incomplete_beta",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sharding_constraint",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
    ]
)
