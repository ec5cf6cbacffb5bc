"""How often the body of a loop runs, read from the text of a compiled program."""

import math
import re

from loft_jax.cost.text import Computation, Instruction, Module

# Instructions that return their first operand unchanged.
_COPIES = {"copy", "copy-done", "copy-start", "bitcast"}


def find_role(loop: Instruction, name: str) -> str | None:
    """Return the name of a loop's "condition" or "body"; None if it names none."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", loop.text)
    return found[1] if found else None


def count_trips(name: str, loop: Instruction, module: Module) -> int | None:
    """Count the runs of a loop's body: as the compiler says, otherwise from the constants that it counts between.

    A loop that counts in constant steps from one constant up to another, as scans do, is understood.

    Args:
      name: name of the computation that contains the loop.

    Returns:
      The number of runs; None if the compiler does not say it, and not all three constants are found, for the counter
      that the condition reads and the body raises.
    """
    if loop.trips is not None:
        return loop.trips
    tested, repeated = find_role(loop, "condition"), find_role(loop, "body")
    condition, body = (module.computations.get(called or "", {}) for called in (tested, repeated))
    test, result = _root(condition), _root(body)
    if test is None or result is None or not loop.operands or test.opcode != "compare":
        return None
    counter, limit = _operands(test, condition)
    index = _read_index(counter, condition)
    if index is None or "direction=LT" not in test.text:
        return None
    before = module.computations[name]
    first = _element(before.get(loop.operands[0]), index)
    raise_ = _follow_copies(_element(result, index), body)
    raised, step = _operands(raise_, body) if raise_ is not None and raise_.opcode == "add" else ("", "")
    begin, stride, end = _constant(first, before), _constant(step, body), _constant(limit, condition)
    if begin is None or stride is None or end is None or stride < 1 or _read_index(raised, body) != index:
        return None
    return max(0, math.ceil((end - begin) / stride))


def _root(computation: Computation) -> Instruction | None:
    return next((instruction for instruction in computation.values() if instruction.root), None)


def _follow_copies(name: str, computation: Computation) -> Instruction | None:
    """Return the instruction of that name; if it is a copy, the instruction that is copied."""
    found = computation.get(name)
    while found is not None and found.opcode in _COPIES and found.operands:
        found = computation.get(found.operands[0])
    return found


def _operands(instruction: Instruction, computation: Computation) -> tuple[str, str]:
    """Return the names of the two operands of an instruction; in an add, a constant comes second."""
    if len(instruction.operands) != 2:
        return "", ""
    one, other = instruction.operands
    swapped = instruction.opcode == "add" and _constant(one, computation) is not None
    return (other, one) if swapped else (one, other)


def _read_index(name: str, computation: Computation) -> int | None:
    """Return the index of the argument's element that a computation reads under that name."""
    read = _follow_copies(name, computation)
    if read is None or read.opcode != "get-tuple-element":
        return None
    argument = computation.get(read.operands[0])
    return read.index if argument is not None and argument.opcode == "parameter" and argument.index == 0 else None


def _element(instruction: Instruction | None, index: int) -> str:
    """Return the name of an element of a tuple, given the instruction that makes the tuple."""
    if instruction is None or instruction.opcode != "tuple" or index >= len(instruction.operands):
        return ""
    return instruction.operands[index]


def _constant(name: str, computation: Computation) -> int | None:
    read = _follow_copies(name, computation)
    if read is None or not re.match(r"[su]\d+\[\]", read.shape):
        return None
    found = re.match(r" constant\((-?\d+)\)", read.text)
    return int(found[1]) if found else None
