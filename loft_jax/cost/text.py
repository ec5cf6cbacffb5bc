"""The text of a compiled program (HLO): its computations and instructions, for those that read something in it.

Backends write the same language in slightly different ways. What is not understood here is left as text.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_INSTRUCTION = re.compile(r"^\s*(ROOT )?%(\S+) = (.*)$")
_OPENING = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_OPCODE = re.compile(r"^ ([a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:to_apply|calls|body|condition|\w+_computations?)=(?:\{([^}]*)\}|([^\s,]+))")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


@dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: its name.
      shape: text of the shape of its result.
      opcode: such as fusion or get-tuple-element; empty if there is none that is known.
      text: all after the shape, opcode and operands first, without the metadata.
      metadata: text of the metadata and all after it.
      root: whether it is the result of its computation.
    """

    name: str
    shape: str
    opcode: str
    text: str
    metadata: str
    root: bool

    @property
    def size(self) -> int:
        """Bytes of its result; of a tuple, of all elements."""
        return array_bytes(self.shape)

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of its operands, in order."""
        start = self.text.find("(")
        return tuple(_OPERAND.findall(take_parentheses(self.text[start:]))) if start >= 0 else ()

    @property
    def index(self) -> int | None:
        """The number of a parameter, or of the element that a get-tuple-element takes; otherwise None."""
        number = re.match(r" parameter\((\d+)\)", self.text) or re.search(r"\), index=(\d+)", self.text)
        return int(number[1]) if number and self.opcode in ("parameter", "get-tuple-element") else None

    @property
    def trips(self) -> int | None:
        """Return how often a loop's body runs, where the compiler says so."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.text + self.metadata)
        return int(found[1]) if found else None

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        listed = [called for several, one in _CALLED.findall(self.text) for called in (several or one).split(",")]
        return [name.strip().lstrip("%") for name in listed]


Computation = Mapping[str, Instruction]


@dataclass(frozen=True)
class Module:
    """A program: name -> instructions of each computation, in order, and the name of the one that runs first.

    Attributes:
      header: text before the first computation, which may list the source lines.
    """

    computations: Mapping[str, Computation]
    entry: str
    header: str

    @property
    def partitions(self) -> int:
        """Number of devices that run the program together."""
        found = re.search(r"\bnum_partitions=(\d+)", self.header.split("\n", 1)[0])
        return int(found[1]) if found else 1


def read_module(text: str) -> Module:
    """Read the text of a compiled program. Raises ValueError if a computation has no instruction that is known."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, header, current = "", [], None
    for line in text.split("\n"):
        opening = _OPENING.match(line)
        if opening and " = " not in line and "->" in line:
            current = computations.setdefault(opening[2], {})
            entry = opening[2] if opening[1] else entry
        elif current is None:
            header.append(line)
        elif instruction := _read_instruction(line):
            current[instruction.name] = instruction
    for name, instructions in computations.items():
        if not instructions:
            raise ValueError(f"no instruction was found in {name}: the text has a form that is not known here")
    if entry not in computations:
        raise ValueError("no entry computation was found: the text has a form that is not known here")
    return Module(computations, entry, "\n".join(header))


def _read_instruction(line: str) -> Instruction | None:
    if not (found := _INSTRUCTION.match(line)):
        return None
    text, comma, metadata = found[3].partition(", metadata=")
    shape = take_parentheses(text) if text.startswith("(") else text.split(" ", 1)[0]
    rest = text[len(shape) :]
    opcode = _OPCODE.match(rest)
    return Instruction(found[2], shape, opcode[1] if opcode else "", rest, comma and metadata, bool(found[1]))


def take_parentheses(text: str) -> str:
    """Return the text up to the end of its first parentheses; layouts inside may have parentheses of their own."""
    depth = 0
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return text[: i + 1]
    return text


def array_bytes(shape: str) -> int:
    """Count the bytes of all arrays in the text of a shape."""
    total = 0
    for kind, bits, dimensions in _ARRAY.findall(shape):
        size = 8 if kind == "pred" else int(bits or 0)
        total += math.prod(int(n) for n in dimensions.split(",") if n) * size // 8
    return total
