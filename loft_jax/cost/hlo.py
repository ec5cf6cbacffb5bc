"""The collectives of a compiled program, read from its HLO: what each device contributes, and what it sends."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import jax

from loft_jax.cost.loops import count_trips
from loft_jax.cost.text import Computation, Instruction, Module, read_module
from loft_jax.loft import COLLECTIVE_KINDS, sent_bytes

# Operations between devices whose bytes are not known here, and operations that only end what another one began.
_UNKNOWN = re.compile(r"(ragged-all-to-all|collective-broadcast|send|recv)")
_ENDING = re.compile(r".*-(done|update)")
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: as HLO names it: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute.
      payload: bytes that each device contributes in one execution.
      devices: number of devices that exchange with each other.
      times: executions in one run of the program (a loop's body counts as often as it runs).
      groups: positions in the mesh of the devices that exchange with each other.
    """

    kind: str
    payload: int
    devices: int
    times: int
    groups: Groups = field(default=(), compare=False, repr=False)

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
    return find_collectives(read_module(text_of(program)))


def find_collectives(module: Module) -> list[Collective]:
    """Return the collectives of a program in which more than one device takes part. Raises ValueError as above."""
    return [found for found in _walk(module.entry, module, times=1) if found.devices > 1]


def payloads(program: jax.stages.Compiled) -> dict[str, int]:
    """Return kind -> bytes that a device contributes to collectives of that kind in one run of the program."""
    total: dict[str, int] = {}
    for found in collectives(program):
        total[found.kind] = total.get(found.kind, 0) + found.times * found.payload
    return total


def text_of(program: jax.stages.Compiled) -> str:
    """Return the text of a compiled program. Raises ValueError if the compiler shows none."""
    if (text := program.as_text()) is None:
        raise ValueError("the compiler shows no text of the program")
    return text


def parse(hlo: str) -> list[Collective]:
    """Return the collectives in a module's text, also those of one device. Raises ValueError as `collectives`."""
    module = read_module(hlo)
    return list(_walk(module.entry, module, times=1))


def _walk(name: str, module: Module, times: int | None) -> Iterator[Collective]:
    """Yield the collectives of a computation that runs `times` times; None if that is not known."""
    computation = module.computations[name]
    for instruction in computation.values():
        if _ENDING.fullmatch(instruction.opcode):
            continue
        if _UNKNOWN.match(instruction.opcode):
            raise ValueError(
                f"{instruction.name} is a {instruction.opcode}, and it is not known how many bytes that sends"
            )
        if instruction.opcode.removesuffix("-start") in COLLECTIVE_KINDS:
            yield _make_collective(instruction, computation, module.partitions, times)
            continue
        inner = times
        if instruction.opcode == "while":
            trips = count_trips(name, instruction, module)
            inner = None if trips is None or times is None else times * trips
        elif instruction.opcode == "conditional":
            inner = None
        for called in instruction.called:
            if called in module.computations:
                yield from _walk(called, module, inner)


def _make_collective(
    instruction: Instruction, computation: Computation, partitions: int, times: int | None
) -> Collective:
    name, text = instruction.name, instruction.text
    if times is None:
        raise ValueError(f"how often {name} runs is not known: it is in a conditional or an unbounded loop")
    payload = sum(computation[operand].size for operand in instruction.operands if operand in computation)
    if not payload:
        raise ValueError(f"operands of {name} have no size that is known: {text}")
    groups = _find_groups(text, partitions)
    return Collective(instruction.opcode.removesuffix("-start"), payload, len(groups[0]), times, groups)


def _find_groups(text: str, partitions: int) -> Groups:
    """Return the devices that a collective joins, in groups; HLO has several ways to write them."""
    permutes = " collective-permute" in text
    if permutes and (pairs := re.search(r"source_target_pairs=\{(\S+)\}", text)):
        # Each sends to another one, so all of them are one group.
        return (tuple(sorted({int(number) for number in re.findall(r"\d+", pairs[1])})),)
    if listed := re.search(r"replica_groups=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}", text):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    if "replica_groups={}" in text or ("replica_groups=" not in text and not permutes):
        return (tuple(range(partitions)),)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape = _numbers(iota[3])
        return _split(_transposed(shape, _numbers(iota[4]) if iota[4] else range(len(shape))), int(iota[2]))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        named = re.findall(r"'([^']+)'(?!:)", mesh[2])
        if named and set(named) <= sizes.keys() and mesh[2].count("'") == 2 * len(named):
            axes = list(sizes)
            order = [axes.index(axis) for axis in (*(axis for axis in axes if axis not in named), *named)]
            return _split(_transposed([*sizes.values()], order), math.prod(sizes[axis] for axis in named))
    raise ValueError(f"devices of a collective are named in an unknown way: {text}")


def _numbers(listed: str) -> list[int]:
    return [int(number) for number in listed.split(",")]


def _transposed(shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """Return 0, 1, ... in an array of this shape, read with its axes in this order."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    found = [0]
    for axis in order:
        found = [first + i * strides[axis] for first in found for i in range(shape[axis])]
    return found


def _split(numbers: Sequence[int], size: int) -> Groups:
    return tuple(tuple(numbers[i : i + size]) for i in range(0, len(numbers), size))
