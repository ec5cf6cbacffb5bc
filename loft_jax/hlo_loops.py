"""How often a loop of a compiled program runs, where the compiler does not write it beside the loop, as for TPUs."""

import math
import re
from collections.abc import Mapping, Sequence

Computations = Mapping[str, Sequence[str]]

# What hands on its first operand as it is.
_COPIES = ("copy", "copy-done", "copy-start", "bitcast")
_OPERAND = re.compile(r"%([\w.\-]+)")


def counted_trips(name: str, text: str, computations: Computations) -> int | None:
    """Runs of the body of a loop that counts from a constant in constant steps while below a constant, as scans do.

    Args:
      name: of the computation that the loop is in.
      text: the loop's line, from its opcode on.
      computations: name -> lines of the module's computations.

    Returns:
      None unless all three constants are found, on the counter that the condition reads and the body raises.
    """
    called = {role: re.search(rf"\b{role}=%?([\w.\-]+)", text) for role in ("condition", "body")}
    carried = _OPERAND.search(text)
    if not all(called.values()) or not carried:
        return None
    condition, body = (_instructions(computations.get(called[role][1], ())) for role in ("condition", "body"))
    test = condition.get("ROOT", "")
    counter, limit = _operands(test, "compare", condition)
    index = _read_index(counter, condition)
    if index is None or "direction=LT" not in test:
        return None
    before, after = _instructions(computations[name]), body.get("ROOT", "")
    first = _element(before.get(carried[1], ""), index, before)
    raised, step = _operands(_behind(_element(after, index, body), body), "add", body)
    constants = [_constant(first, before), _constant(step, body), _constant(limit, condition)]
    if None in constants or constants[1] < 1 or _read_index(raised, body) != index:
        return None
    return max(0, math.ceil((constants[2] - constants[0]) / constants[1]))


def _instructions(lines: Sequence[str]) -> dict[str, str]:
    """Name -> what stands behind "="; the last one also as ROOT."""
    found = {}
    for line in lines:
        if instruction := re.match(r"\s*(ROOT )?%(\S+) = (.*)$", line):
            found[instruction[2]] = instruction[3]
            if instruction[1]:
                found["ROOT"] = instruction[3]
    return found


def _behind(name: str, instructions: Mapping[str, str]) -> str:
    """The instruction of that name, or what it is a copy of."""
    text = instructions.get(name, "")
    while copied := re.search(rf" (?:{'|'.join(_COPIES)})\(%([\w.\-]+)", text):
        text = instructions.get(copied[1], "")
    return text


def _operands(text: str, opcode: str, instructions: Mapping[str, str]) -> tuple[str, str]:
    """Names of the two operands of an instruction of this opcode; of an add, a constant is named second."""
    found = re.search(rf" {opcode}\(%([\w.\-]+), %([\w.\-]+)\)", text)
    if not found:
        return "", ""
    one, other = found.groups()
    return (other, one) if opcode == "add" and _constant(one, instructions) is not None else (one, other)


def _read_index(name: str, instructions: Mapping[str, str]) -> int | None:
    """Which element of its argument a computation reads under that name."""
    read = re.search(r" get-tuple-element\(%([\w.\-]+)\), index=(\d+)", _behind(name, instructions))
    return int(read[2]) if read and " parameter(0)" in instructions.get(read[1], "") else None


def _element(text: str, index: int, instructions: Mapping[str, str]) -> str:
    """Name of an element of a tuple, given the line that makes it."""
    if not (made := re.search(r" tuple\((.*?)\)(?:, |$)", text)):
        return ""
    names = _OPERAND.findall(made[1])
    return names[index] if index < len(names) else ""


def _constant(name: str, instructions: Mapping[str, str]) -> int | None:
    found = re.search(r"^[su]\d+\[\]\S* constant\((-?\d+)\)", _behind(name, instructions))
    return int(found[1]) if found else None
