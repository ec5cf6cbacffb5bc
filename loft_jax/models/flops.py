"""FLOPs of a traced function: its convolutions and matrix products. The count of plans, costs and shares of a peak.

A multiplication and an addition are two FLOPs, as in a vendor's peak. What multiplies a zero of padding or dilation
does not count, as in XLA's `cost_analysis`: there is nothing to compute. The literature counts the zeros of padding;
`padding=True` does so too. Element-wise work is left out: it uses other
units and is bound by memory. (XLA's count has it; of library calls on GPUs, XLA counts nothing.)
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.stages import Traced


def count_flops(function: Traced | ClosedJaxpr | Jaxpr, *, padding: bool = False) -> int:
    """Count the FLOPs of one call of a traced function, `jax.jit(f).trace(...)` or `jax.make_jaxpr(f)(...)`.

    A scan counts as often as it runs, a conditional as its largest branch, and a choice by platform as its default: the
    form in which a backend computes something changes no FLOPs. What nothing depends on does not count. Inside
    `jax.shard_map` shapes are those of a device, so the FLOPs are those of one device.

    Args:
      function: what was traced.
      padding: whether a product with a zero of padding counts, as if padded images were images of that size.

    Raises:
      ValueError: there are products in a loop that does not say how often it runs.
    """
    jaxpr = _open(function.jaxpr if isinstance(function, Traced) else function)
    return _count(jaxpr, [True] * len(jaxpr.outvars), padding)


def count_equation(equation: JaxprEqn, *, padding: bool = False) -> int:
    """Count the FLOPs of one product or convolution of a traced function; 0 for any other primitive."""
    if equation.primitive.name == "dot_general":
        return _count_product(equation)
    if equation.primitive.name == "conv_general_dilated":
        return _count_convolution(equation, padding)
    return 0


def _count(jaxpr: Jaxpr, used: Sequence[bool], padding: bool) -> int:
    """Count the FLOPs of those results of a function that are used."""
    needed = {variable for variable, use in zip(jaxpr.outvars, used, strict=True) if use and isinstance(variable, Var)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        results = [variable in needed for variable in equation.outvars]
        if any(results) or equation.effects:
            total += _count_equation(equation, results, padding)
            needed.update(variable for variable in equation.invars if isinstance(variable, Var))
    return total


def _count_equation(equation: JaxprEqn, used: Sequence[bool], padding: bool) -> int:
    params, name = equation.params, equation.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        return count_equation(equation, padding=padding)
    if name == "scan":
        return params["length"] * count_flops(params["jaxpr"], padding=padding)
    if name == "cond":
        return max(_count(_open(branch), used, padding) for branch in _possible_branches(params))
    # The results of a called function are those of its equation; those of a loop's parts are not.
    inner = 0
    for called in map(_open, _inner_functions(params)):
        inner += _count(called, used if len(called.outvars) == len(used) else [True] * len(called.outvars), padding)
    if name == "while" and inner:
        raise ValueError("products in a while loop cannot be counted: how often it runs is not known; use jax.lax.scan")
    return inner


def _count_product(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(left[axis] for axis in contracted) * math.prod(out)


def _count_convolution(equation: JaxprEqn, padding: bool) -> int:
    params, (images, kernel) = equation.params, map(_shape, equation.invars)
    numbers, out = params["dimension_numbers"], _shape(equation.outvars[0])
    # The kernel's input channels are those of one feature group; with batch groups an image meets one group of filters.
    per_position = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    axes = zip(
        numbers.lhs_spec[2:],
        numbers.rhs_spec[2:],
        numbers.out_spec[2:],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    pairs = 1
    for image_axis, kernel_axis, out_axis, stride, (before, _), spread, dilation in axes:
        lengths = images[image_axis], kernel[kernel_axis], out[out_axis]
        # Where the image is spread, its zeros are no padding: the convolution is the transpose of another one.
        if padding and spread == 1:
            pairs *= lengths[1] * lengths[2]
        else:
            pairs *= _count_pairs(*lengths, stride, before, spread, dilation)
    return 2 * per_position * pairs


def _count_pairs(image: int, kernel: int, out: int, stride: int, before: int, spread: int, dilation: int) -> int:
    """Count the pairs (output, element of the kernel) along an axis that meet an element of the image.

    Args:
      image, kernel, out: lengths of the axis.
      before: padding at its begin, may be negative.
      spread: elements of the image are this far apart, zeros between them.
      dilation: elements of the kernel are this far apart.
    """
    count = 0
    for k in range(kernel):
        start = k * dilation - before
        positions = range(start, start + out * stride, stride)
        count += sum(position % spread == 0 and 0 <= position < image * spread for position in positions)
    return count


def _possible_branches(params: dict[str, Any]) -> list[ClosedJaxpr]:
    """Return the branches of a conditional; of a choice by platform that of no named platform, if there is one."""
    platforms, branches = params.get("branches_platforms"), params["branches"]
    default = [branch for branch, named in zip(branches, platforms or [], strict=False) if named is None]
    return default or list(branches)


def _inner_functions(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yield the traced functions that an equation calls."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                yield item


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _open(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
