"""The collectives of a compiled program, read from its HLO: what each device contributes, and what it sends."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax

from loft_jax.loft import COLLECTIVE_KINDS, sent_bytes

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.*)$")
_OPCODE = re.compile(r"^ ([a-z][\w\-]*)\(")
# Operations between devices whose bytes are not known here, and operations that only end what another one began.
_UNKNOWN = re.compile(r"(ragged-all-to-all|collective-broadcast|send|recv)")
_ENDING = re.compile(r".*-(done|update)")
_CALLED = re.compile(r"\b(?:to_apply|calls|body|condition|\w+_computations?)=(?:\{([^}]*)\}|([^\s,]+))")


@dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: as HLO names it: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute.
      payload: bytes that each device contributes in one execution.
      devices: number of devices that exchange with each other.
      times: executions in one run of the program (a loop's body counts as often as it runs).
    """

    kind: str
    payload: int
    devices: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one run of the program."""
        return self.times * sent_bytes(self.kind, self.payload, self.devices)


def collectives(program: jax.stages.Compiled) -> list[Collective]:
    """Return the collectives of a compiled program in which more than one device takes part.

    Raises:
      ValueError: a collective is in a conditional, or in a loop for which the compiler does not say how often it runs;
        or it is written in a way that is not known here. Nothing is guessed.
    """
    if (text := program.as_text()) is None:
        raise ValueError("the compiler shows no text of the program")
    return [found for found in parse(text) if found.devices > 1]


def payloads(program: jax.stages.Compiled) -> dict[str, int]:
    """Return kind -> bytes that a device contributes to collectives of that kind in one run of the program."""
    total: dict[str, int] = {}
    for found in collectives(program):
        total[found.kind] = total.get(found.kind, 0) + found.times * found.payload
    return total


def parse(hlo: str) -> list[Collective]:
    """Return the collectives in a module's text, also those of one device. Raises ValueError as `collectives`."""
    header = re.search(r"\bnum_partitions=(\d+)", hlo.split("\n", 1)[0])
    computations, entry = _computations(hlo)
    return list(_walk(entry, computations, int(header[1]) if header else 1, times=1))


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Return name -> lines of each computation, and the name of the entry computation."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.split("\n"):
        opening = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if opening and " = " not in line and "->" in line:
            lines = computations.setdefault(opening[2], [])
            entry = opening[2] if opening[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _walk(name: str, computations: dict[str, list[str]], partitions: int, times: int | None) -> Iterator[Collective]:
    """Yield the collectives of a computation that runs `times` times; None if that is not known."""
    sizes: dict[str, int] = {}
    for line in computations[name]:
        if not (instruction := _INSTRUCTION.match(line)):
            continue
        result, text = instruction[1], instruction[2].split(", metadata=")[0]
        shape = _take_parentheses(text) if text.startswith("(") else text.split(" ", 1)[0]
        sizes[result], text = _bytes(shape), text[len(shape) :]
        opcode = (_OPCODE.match(text) or ["", ""])[1]
        if _ENDING.fullmatch(opcode):
            continue
        if _UNKNOWN.match(opcode):
            raise ValueError(f"{result} is a {opcode}, and it is not known how many bytes that sends")
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVE_KINDS:
            if times is None:
                raise ValueError(f"how often {result} runs is not known: it is in a conditional or an unbounded loop")
            operands = re.findall(r"%([\w.\-]+)", _take_parentheses(text[text.index("(") :]))
            payload = sum(sizes[operand] for operand in operands)
            if not payload:
                raise ValueError(f"operands of {result} have no size that is known: {text}")
            yield Collective(kind, payload, _group_size(text, partitions), times)
            continue
        inner = times
        if opcode == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
            trips = int(trips[1]) if trips else count_trips(name, text, computations)
            inner = None if trips is None or times is None else times * trips
        elif opcode == "conditional":
            inner = None
        for listed, single in _CALLED.findall(text):
            for called in (listed or single).split(","):
                if (known := called.strip().lstrip("%")) in computations:
                    yield from _walk(known, computations, partitions, inner)
    if not sizes:
        raise ValueError(f"no instruction was found in {name}: the text has a form that is not known here")


def _take_parentheses(text: str) -> str:
    """Return the text up to the end of its first parentheses; layouts inside may have parentheses of their own."""
    depth = 0
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return text[: i + 1]
    return text


def _bytes(shape: str) -> int:
    total = 0
    for kind, bits, dimensions in re.findall(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]", shape):
        bits = 8 if kind == "pred" else int(bits or 0)
        total += math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
    return total


def _group_size(text: str, partitions: int) -> int:
    """Return the number of devices that a collective joins; HLO has several ways to write it."""
    permutes = " collective-permute" in text
    if permutes and (pairs := re.search(r"source_target_pairs=(\S+)", text)):
        return len({*re.findall(r"\d+", pairs[1])})
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    if "replica_groups={}" in text or ("replica_groups=" not in text and not permutes):
        return partitions
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        named = re.findall(r"'([^']+)'(?!:)", mesh[2])
        if named and set(named) <= sizes.keys() and mesh[2].count("'") == 2 * len(named):
            return math.prod(sizes[axis] for axis in named)
    raise ValueError(f"devices of a collective are named in an unknown way: {text}")


Computations = Mapping[str, Sequence[str]]


# Instructions that return their first operand unchanged.
_COPIES = ("copy", "copy-done", "copy-start", "bitcast")


_OPERAND = re.compile(r"%([\w.\-]+)")


def count_trips(name: str, text: str, computations: Computations) -> int | None:
    """Count the runs of a loop's body, if it counts in constant steps from one constant up to another, as scans do.

    Args:
      name: name of the computation that contains the loop.
      text: line of the loop, from its opcode on.
      computations: name -> lines of the module's computations.

    Returns:
      The number of runs; None unless all three constants are found, for the counter that the condition reads and the
      body raises.
    """
    tested, repeated = (re.search(rf"\b{role}=%?([\w.\-]+)", text) for role in ("condition", "body"))
    carried = _OPERAND.search(text)
    if not tested or not repeated or not carried:
        return None
    condition, body = (_instructions(computations.get(called[1], ())) for called in (tested, repeated))
    test = condition.get("ROOT", "")
    counter, limit = _operands(test, "compare", condition)
    index = _read_index(counter, condition)
    if index is None or "direction=LT" not in test:
        return None
    before, after = _instructions(computations[name]), body.get("ROOT", "")
    first = _element(before.get(carried[1], ""), index, before)
    raised, step = _operands(_follow_copies(_element(after, index, body), body), "add", body)
    begin, stride, end = _constant(first, before), _constant(step, body), _constant(limit, condition)
    if begin is None or stride is None or end is None or stride < 1 or _read_index(raised, body) != index:
        return None
    return max(0, math.ceil((end - begin) / stride))


def _instructions(lines: Sequence[str]) -> dict[str, str]:
    """Return name -> text after "="; the text of the ROOT instruction also under "ROOT"."""
    found = {}
    for line in lines:
        if instruction := re.match(r"\s*(ROOT )?%(\S+) = (.*)$", line):
            found[instruction[2]] = instruction[3]
            if instruction[1]:
                found["ROOT"] = instruction[3]
    return found


def _follow_copies(name: str, instructions: Mapping[str, str]) -> str:
    """Return the instruction of that name; if it is a copy, the instruction that is copied."""
    text = instructions.get(name, "")
    while copied := re.search(rf" (?:{'|'.join(_COPIES)})\(%([\w.\-]+)", text):
        text = instructions.get(copied[1], "")
    return text


def _operands(text: str, opcode: str, instructions: Mapping[str, str]) -> tuple[str, str]:
    """Return the names of the two operands of an instruction of this opcode; in an add, a constant comes second."""
    found = re.search(rf" {opcode}\(%([\w.\-]+), %([\w.\-]+)\)", text)
    if not found:
        return "", ""
    one, other = found.groups()
    return (other, one) if opcode == "add" and _constant(one, instructions) is not None else (one, other)


def _read_index(name: str, instructions: Mapping[str, str]) -> int | None:
    """Return the index of the argument's element that a computation reads under that name."""
    read = re.search(r" get-tuple-element\(%([\w.\-]+)\), index=(\d+)", _follow_copies(name, instructions))
    return int(read[2]) if read and " parameter(0)" in instructions.get(read[1], "") else None


def _element(text: str, index: int, instructions: Mapping[str, str]) -> str:
    """Return the name of an element of a tuple, given the line that makes the tuple."""
    if not (made := re.search(r" tuple\((.*?)\)(?:, |$)", text)):
        return ""
    names = _OPERAND.findall(made[1])
    return names[index] if index < len(names) else ""


def _constant(name: str, instructions: Mapping[str, str]) -> int | None:
    found = re.search(r"^[su]\d+\[\]\S* constant\((-?\d+)\)", _follow_copies(name, instructions))
    return int(found[1]) if found else None
