"""Walk through a traced function and say of every axis of every array which term it is.

Every primitive has a rule that makes the terms of its results from those of its operands, and unifies what must be one
axis. What no rule can express is frozen, with the primitive and the line of the user's code as the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from loft_jax.models.flops import count_equation
from loft_jax.models.tracing.rules import (
    BODIES,
    CALLS,
    ELEMENTWISE,
    RULES,
    SOURCES,
    Value,
    apply_elementwise,
    constant,
    describe,
    freeze_unknown,
    fresh,
    locate,
    shape_of,
    unify_values,
)
from loft_jax.models.tracing.terms import Atom, Term, freeze, unify

# Their results have sizes that the user's code gives, or follow from them.
_SHAPED = frozenset(("reshape", "dot_general", "conv_general_dilated"))
# Around what is walked into. `convolve` takes another form at few channels, and computes the same.
_UNSEEN = CALLS | {"cond", "platform_index"}


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


@dataclass(frozen=True)
class Result:
    """What an operation returns.

    Attributes:
      equation: the operation.
      axes: of the result, for operations whose result has sizes from the user's code; () for others.
      numbers: scalars in the code that are operands.
    """

    equation: JaxprEqn
    axes: tuple[Term, ...]
    numbers: tuple[str, ...]

    @property
    def primitive(self) -> str:
        return self.equation.primitive.name

    @property
    def where(self) -> str:
        """The primitive and the user's line."""
        return describe(self.equation)


@dataclass
class Walk:
    """What a walk has seen.

    Attributes:
      produced, consumed: the axes that convolutions and products make, and those that they sum over.
      operations: number of convolutions and products.
      results: what operations return, in order.
    """

    produced: list[Use] = field(default_factory=list)
    consumed: list[Use] = field(default_factory=list)
    operations: int = 0
    results: list["Result"] = field(default_factory=list)

    def run(
        self, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Value], caller: JaxprEqn | None = None
    ) -> list[Value]:
        """Walk through a function, given the values of its arguments; return those of its results."""
        values: dict[Var, Value] = {}
        for variable in jaxpr.constvars:
            values[variable] = constant(variable.aval)
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(operand: Var | Literal) -> Value:
            return constant(operand.aval) if isinstance(operand, Literal) else values[operand]

        for equation in jaxpr.eqns:
            equation = locate(equation, caller)
            results = self._step(equation, [read(operand) for operand in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
            self._note(equation, results)
        return [read(result) for result in jaxpr.outvars]

    def _note(self, equation: JaxprEqn, results: list[Value]) -> None:
        name = equation.primitive.name
        if name not in _UNSEEN:
            numbers = tuple(str(x.val) for x in equation.invars if isinstance(x, Literal) and np.ndim(x.val) == 0)
            self.results.append(Result(equation, results[0].axes if name in _SHAPED else (), numbers))

    def _step(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        name = equation.primitive.name
        if name in CALLS:
            return self._call(equation, operands)
        if name == "cond":
            return self._choose(equation, operands)
        if name == "scan":
            return self._scan(equation, operands)
        if name == "dot_general":
            return self._multiply(equation, operands)
        if name == "conv_general_dilated":
            return self._convolve(equation, operands)
        if name in ELEMENTWISE:
            return apply_elementwise(equation, operands)
        if name.startswith("random_") or name in SOURCES:
            return [fresh(result.aval) for result in equation.outvars]
        return RULES.get(name, freeze_unknown)(equation, operands)

    def _call(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        inner = next(value for key in BODIES if (value := equation.params.get(key)) is not None)
        return self._open(equation, inner, operands[len(operands) - len(_jaxpr(inner).invars) :])

    def _open(self, caller: JaxprEqn, inner: ClosedJaxpr | Jaxpr, operands: list[Value]) -> list[Value]:
        return self.run(_jaxpr(inner), getattr(inner, "consts", ()), operands, caller)

    def _choose(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        platforms = equation.params.get("branches_platforms")
        if not platforms:
            return freeze_unknown(equation, operands)
        # All branches of a choice by platform compute one thing: the form for no named platform says what.
        default = platforms.index(None) if None in platforms else len(platforms) - 1
        return self._open(equation, equation.params["branches"][default], operands[1:])

    def _scan(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        params, reason = equation.params, describe(equation)
        constants, carries = params["num_consts"], params["num_carry"]
        length = Atom(params["length"], frozen=f"repeated by {reason}")
        for value in operands[constants + carries :]:
            unify(value.axes[0], length, reason)
        carried = operands[constants : constants + carries]
        rows = [Value(value.axes[1:], value.path) for value in operands[constants + carries :]]
        results = self._open(equation, params["jaxpr"], [*operands[:constants], *carried, *rows])
        for before, after in zip(carried, results[:carries], strict=True):
            unify_values(before, after, reason)
        return results[:carries] + [Value((length, *value.axes)) for value in results[carries:]]

    def _multiply(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        (contracted, batched), reason = equation.params["dimension_numbers"], describe(equation)
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
        params, reason = equation.params, describe(equation)
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
        axes = [Atom(n, frozen=f"positions of {reason}") for n in shape_of(equation)]
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
