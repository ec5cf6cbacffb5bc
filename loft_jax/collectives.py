"""The collectives of a compiled program, read from its HLO: what each device hands in, and what goes over the wire."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax

# Bytes that a device sends for each byte it hands in, among g devices; all-reduce as a ring.
_SENT = {
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-gather": lambda g: g - 1,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
}
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.*)$")
_CALL = re.compile(r"\b(?:to_apply|calls|body|branch_computations|true_computation|false_computation)=\{?([^}\s]+)")
_COLLECTIVE = re.compile(rf" ({'|'.join(_SENT)})(?:-start)?\(([^)]*)\)")


@dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: as HLO names it: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute.
      payload: bytes that each device hands in at one execution.
      devices: that exchange with each other.
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


def sent_bytes(kind: str, payload: float, devices: int) -> float:
    """Bytes that each of so many devices sends when it hands `payload` bytes to a collective; a ring for all-reduce."""
    return _SENT[kind](devices) * payload


def collectives(program: jax.stages.Compiled) -> list[Collective]:
    """The collectives of a compiled program that more than one device takes part in.

    Raises:
      ValueError: one is in a loop of which the compiler does not say how often it runs, or names its devices in a way
        that is not known here.
    """
    return [found for found in parse(program.as_text()) if found.devices > 1]


def payloads(program: jax.stages.Compiled) -> dict[str, int]:
    """Kind -> bytes that a device hands to collectives of that kind in one run of the program."""
    total: dict[str, int] = {}
    for found in collectives(program):
        total[found.kind] = total.get(found.kind, 0) + found.times * found.payload
    return total


def wire_bytes(programs: Mapping[str, jax.stages.Compiled], runs: Mapping[str, int], devices: int) -> float:
    """Bytes that so many devices together send when each named program is run as often as `runs` says."""
    return devices * sum(runs[name] * found.sent for name in programs for found in collectives(programs[name]))


def parse(hlo: str) -> list[Collective]:
    """`collectives` of a module's text, those of one device included."""
    header = re.search(r"\bnum_partitions=(\d+)", hlo.split("\n", 1)[0])
    computations, entry = _computations(hlo)
    return list(_walk(entry, computations, int(header[1]) if header else 1, times=1))


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of each computation, and the name of the entry."""
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
    """`times`: how often the computation runs; None if it is not known."""
    shapes: dict[str, int] = {}
    for line in computations[name]:
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        shapes[instruction[1]] = _bytes(_shape(instruction[2]))
        text = instruction[2].split(", metadata=")[0]
        if found := _COLLECTIVE.search(text):
            if times is None:
                raise ValueError(f"how often {instruction[1]} runs is not known: its loop has no known trip count")
            payload = sum(shapes[operand] for operand in re.findall(r"%([\w.\-]+)", found[2]))
            yield Collective(found[1], payload, _group_size(text, partitions), times)
            continue
        inner = times
        if " while(" in text:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
            inner = times * int(trips[1]) if trips and times is not None else None
        for called in _CALL.findall(text):
            for part in called.split(","):
                if part.lstrip("%") in computations:
                    yield from _walk(part.lstrip("%"), computations, partitions, inner)


def _shape(text: str) -> str:
    """The shape that a definition begins with; a tuple's is in parentheses."""
    if not text.startswith("("):
        return text.split(" ", 1)[0]
    depth = 0
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return text[: i + 1]
    return text


def _bytes(shape: str) -> int:
    total = 0
    for dtype, dimensions in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape):
        bits = _BITS.get(dtype) or int((re.match(r"[a-z]+(\d+)", dtype) or [0, 0])[1])
        total += math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
    return total


def _group_size(text: str, partitions: int) -> int:
    """Devices that a collective joins, in whichever way its line says it."""
    if " collective-permute" in text:
        return partitions
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    if "replica_groups={}" in text or "replica_groups=" not in text:
        return partitions
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        named = re.findall(r"'([^']+)'(?!:)", mesh[2])
        if named and set(named) <= sizes.keys() and mesh[2].count("'") == 2 * len(named):
            return math.prod(sizes[axis] for axis in named)
    raise ValueError(f"devices of a collective are named in an unknown way: {text}")
