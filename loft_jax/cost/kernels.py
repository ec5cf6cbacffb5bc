"""The kernels of a compiled program: how often each runs, the bytes that it reads and writes, and where it comes from.

A kernel is an instruction that a device starts on its own: a fusion, a library's convolution or product, a copy, a
collective. Its bytes are those of its operands and results, each once, as if no cache helped and nothing was read
twice; of an operand of which only some elements are picked (the training set, by a gather), only those count.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from loft_jax.cost.hlo import count_trips
from loft_jax.cost.text import Computation, Instruction, Module, read_module
from loft_jax.loft import COLLECTIVE_KINDS

# Instructions for which no device starts anything, and those that only end what another one began.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "add-dependency"),
    *("opt-barrier", "partition-id", "replica-id", "domain"),
}
_ENDING = re.compile(r".*-(done|update)")
# Instructions that run the computations that they call, one after another, rather than being a kernel themselves.
_CALLS = {"call", "while", "conditional", "async-start"}
# Instructions that read of their first operand only as much as they return.
_PICKS = {"gather", "dynamic-slice", "slice"}
_PRODUCT = re.compile(r"\b(dot|gemm|cublas|matmul)", re.IGNORECASE)


@dataclass(frozen=True)
class Kernel:
    """A kernel of a program.

    Attributes:
      name: its name in the compiled program.
      kind: convolution, product, reduction, element-wise, gather, copy, collective, sort, or its opcode.
      read, written: bytes of one run.
      times: runs in one run of the program, or of the loop's body that was asked for.
      operation: name of the traced operation that it returns: the functions and layers around it, slash-joined.
      source: function and line of this package that it comes from; empty if the compiler names none.
    """

    name: str
    kind: str
    read: int
    written: int
    times: int
    operation: str
    source: str

    @property
    def bytes(self) -> int:
        """Bytes that it reads and writes in all its runs."""
        return self.times * (self.read + self.written)

    @property
    def layer(self) -> str:
        """The layer that it belongs to, such as stage2_block1/norm1; empty if it belongs to none."""
        return "/".join(
            part
            for part in self.operation.split("/")[:-1]
            if re.fullmatch(r"[A-Za-z]\w*", part) and part not in _WRAPPERS
        )

    @property
    def is_backward(self) -> bool:
        """Whether it computes gradients."""
        return "transpose(" in self.operation


_WRAPPERS = {"shard_map", "while", "body", "closed_call", "cond", "checkpoint", "rematted_computation", "scan"}


def kernels(text: str) -> list[Kernel]:
    """Return the kernels of a compiled program, from its text; in a loop each with all its runs.

    Raises:
      ValueError: the text has a form that is not known, or a loop does not say how often it runs.
    """
    reader = _Reader(read_module(text))
    return list(reader.walk(reader.module.entry, 1))


def loop_kernels(text: str) -> list[Kernel]:
    """Return the kernels of one run of the body of the program's main loop, the one that moves most bytes.

    Raises:
      ValueError: the program has no loop, or as `kernels`.
    """
    reader = _Reader(read_module(text))
    found = [list(reader.walk(body, 1)) for body in reader.loop_bodies(reader.module.entry)]
    if not found:
        raise ValueError("the program has no loop")
    return max(found, key=lambda body: sum(kernel.bytes for kernel in body))


class _Reader:
    def __init__(self, module: Module):
        self.module = module

    def loop_bodies(self, name: str) -> Iterator[str]:
        """Yield the bodies of the loops of a computation that are in no other loop."""
        for instruction in self.module.computations[name].values():
            if instruction.opcode == "while":
                yield _role(instruction, "body")
            elif instruction.opcode in _CALLS:
                for called in instruction.called:
                    yield from self.loop_bodies(called)

    def walk(self, name: str, times: int) -> Iterator[Kernel]:
        """Yield the kernels of a computation that runs `times` times."""
        computation = self.module.computations[name]
        for instruction in computation.values():
            if instruction.opcode in _FREE or not instruction.opcode or _ENDING.fullmatch(instruction.opcode):
                continue
            if instruction.opcode == "while":
                yield from self._walk_loop(name, instruction, times)
            elif instruction.opcode == "conditional":
                branches = [list(self.walk(called, times)) for called in instruction.called]
                yield from max(branches, key=lambda branch: sum(kernel.bytes for kernel in branch))
            elif instruction.opcode in _CALLS:
                for called in instruction.called:
                    yield from self.walk(called, times)
            else:
                yield self._make_kernel(instruction, computation, times)

    def _walk_loop(self, name: str, loop: Instruction, times: int) -> Iterator[Kernel]:
        trips = loop.trips
        if trips is None:
            lines = {key: [] for key in ()}
            trips = count_trips(name, loop.text, lines)
        if trips is None:
            raise ValueError(f"how often {loop.name} runs is not known")
        yield from self.walk(_role(loop, "condition"), times * (trips + 1))
        yield from self.walk(_role(loop, "body"), times * trips)

    def _make_kernel(self, instruction: Instruction, computation: Computation, times: int) -> Kernel:
        fused = self.module.computations[instruction.called[0]] if instruction.opcode == "fusion" else {}
        sizes = [computation[operand].size for operand in instruction.operands if operand in computation]
        written = instruction.size
        if fused:
            sizes, written = fused_bytes(fused, sizes, written)
        elif instruction.opcode in _PICKS:
            sizes[0] = written
        elif instruction.opcode == "dynamic-update-slice":
            sizes[0], written = 0, sizes[1]
        name = re.search(r'op_name="([^"]*)"', instruction.metadata)
        return Kernel(
            name=instruction.name,
            kind=_kind(instruction, fused),
            read=sum(sizes),
            written=written,
            times=times,
            operation=name[1] if name else "",
            source=self._sources.find(instruction.metadata),
        )

    @cached_property
    def _sources(self) -> "_Sources":
        return _Sources(self.module.header)


def fused_bytes(fused: Computation, sizes: list[int], written: int) -> tuple[list[int], int]:
    """Return the bytes that a fusion reads of each operand, and those that it writes."""
    users: dict[str, list[Instruction]] = {}
    for instruction in fused.values():
        for operand in instruction.operands:
            users.setdefault(operand, []).append(instruction)
    read = list(sizes)
    for parameter in fused.values():
        number = parameter.index if parameter.opcode == "parameter" else None
        if number is None or number >= len(read):
            continue
        picked = [_picked_bytes(user, parameter.name, fused, users) for user in users.get(parameter.name, [])]
        if all(size is not None for size in picked):
            read[number] = min(read[number], sum(size or 0 for size in picked))
    root = next((i for i in fused.values() if i.root), None)
    if root is not None and root.opcode == "dynamic-update-slice":
        written = fused[root.operands[1]].size
    return read, written


def _picked_bytes(
    user: Instruction, operand: str, fused: Computation, users: Mapping[str, list[Instruction]]
) -> int | None:
    """Return the bytes that an instruction reads of an operand if that is only a part; None if it reads all of it."""
    if user.opcode == "bitcast":
        sizes = [_picked_bytes(following, user.name, fused, users) for following in users.get(user.name, [])]
        return None if None in sizes else sum(size or 0 for size in sizes)
    first = user.operands[:1] == (operand,) and operand not in user.operands[1:]
    if first and user.opcode in _PICKS:
        return user.size
    # Updated in place: the rest of it is not touched.
    if first and user.opcode == "dynamic-update-slice" and user.root:
        return 0
    return None


def _kind(instruction: Instruction, fused: Computation) -> str:
    opcode = instruction.opcode.removesuffix("-start")
    opcodes = {inner.opcode for inner in fused.values()}
    if opcode in COLLECTIVE_KINDS:
        return "collective"
    if opcode == "convolution" or "convolution" in opcodes or '"__cudnn$conv' in instruction.text:
        return "convolution"
    if opcode == "dot" or "dot" in opcodes or (opcode == "custom-call" and _PRODUCT.search(instruction.text)):
        return "product"
    if opcode in ("reduce", "reduce-window", "select-and-scatter") or opcodes & {"reduce", "reduce-window"}:
        return "reduction"
    if opcode in ("gather", "dynamic-slice", "scatter") or opcodes & {"gather", "scatter"}:
        return "gather"
    if opcode in ("copy", "transpose"):
        return "copy"
    return "element-wise" if opcode == "fusion" else opcode


def _role(loop: Instruction, role: str) -> str:
    found = re.search(rf"\b{role}=%?([\w.\-]+)", loop.text)
    if not found:
        raise ValueError(f"{loop.name} has no {role}: the text has a form that is not known here")
    return found[1]


class _Sources:
    """The source lines of a program, from the tables in its header: frames of calls, innermost first."""

    def __init__(self, header: str):
        tables = re.split(r"^(FileNames|FunctionNames|FileLocations|StackFrames)$", header, flags=re.MULTILINE)
        rows = {
            name: dict(re.findall(r"^(\d+) (.*)$", table, re.MULTILINE))
            for name, table in zip(tables[1::2], tables[2::2], strict=True)
        }
        self._files, self._functions, self._locations, self._frames = (
            rows.get(name, {}) for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
        )

    def find(self, metadata: str) -> str:
        """Return function, file and line of the innermost frame in this package, otherwise of the innermost frame."""
        frame = re.search(r"\bstack_frame_id=(\d+)", metadata)
        places = list(self._places(frame[1])) if frame else []
        own = [place for place in places if "/loft_jax/" in place[1]]
        if not places:
            return ""
        function, path, line = (own or places)[0]
        return f"{function} ({path.rpartition('/loft_jax/')[2]}:{line})"

    def _places(self, frame: str) -> Iterator[tuple[str, str, str]]:
        seen: set[str] = set()
        while frame in self._frames and frame not in seen:
            seen.add(frame)
            call = _fields(self._frames[frame])
            place = _fields(self._locations.get(call.get("file_location_id", ""), ""))
            function = self._functions.get(place.get("function_name_id", ""), "").strip('"')
            yield function, self._files.get(place.get("file_name_id", ""), "").strip('"'), place.get("line", "")
            # The text counts parents one higher than frames; 1 is for none.
            frame = str(int(call.get("parent_frame_id", "1")) - 1)


def _fields(row: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\d+)", row))


def summarise(found: Iterable[Kernel]) -> tuple[int, int]:
    """Return the number of kernels that run, and the bytes that they read and write."""
    found = list(found)
    return sum(kernel.times for kernel in found), sum(kernel.bytes for kernel in found)
