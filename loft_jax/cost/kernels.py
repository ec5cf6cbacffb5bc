"""The kernels of a compiled program: how often each runs, the bytes that it reads and writes, and where it comes from.

A kernel is an instruction that a device starts on its own: a fusion, a library's convolution or product, a copy, a
collective. Its bytes are those of its operands and results, each once, as if no cache helped and nothing was read
twice. Where only a part of an operand is picked (a batch from the training set) or changed in place, only that counts.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from loft_jax.cost.loops import count_trips, find_role
from loft_jax.cost.sources import Sources
from loft_jax.cost.text import Computation, Instruction, Module
from loft_jax.loft import COLLECTIVE_KINDS

# Instructions for which a device starts nothing, and those that only end what another one began.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "add-dependency"),
    *("opt-barrier", "partition-id", "replica-id"),
}
_ENDING = re.compile(r".*-(done|update)")
# Instructions that run the computations that they name.
_CALLS = {"call", "async-start"}
# Instructions that read of their first operand only as much as they return; and those that change a part of it in
# place, with the number of the operand that has the part's size.
_PICKS = {"gather", "dynamic-slice", "slice"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
_REDUCTIONS = {"reduce", "reduce-window", "select-and-scatter"}
_PRODUCT_CALL = re.compile(r"custom_call_target=\"[^\"]*(gemm|cublas|matmul|dot)", re.IGNORECASE)
# Parts of an operation's name that are no layer.
_WRAPPER = re.compile(r"shard_map|while|body|cond|branch_\d+_fun|closed_call|checkpoint|rematted_computation")


@dataclass(frozen=True)
class Kernel:
    """A kernel of a program.

    Attributes:
      name: its name in the compiled program.
      kind: convolution, product, reduction, gather, collective, copy, element-wise, or the name of another instruction.
      read, written: bytes of one run.
      times: runs in one run of the program.
      loop: name of the outermost loop that it is in; empty if it is in none.
      operation: name of the traced operation whose result it returns: functions and layers around it, then its own.
      source: function and line that it comes from; empty if the compiler names none.
    """

    name: str
    kind: str
    read: int
    written: int
    times: int = 1
    loop: str = ""
    operation: str = ""
    source: str = ""

    @property
    def each(self) -> int:
        """Bytes that it reads and writes in one run."""
        return self.read + self.written

    @property
    def layer(self) -> str:
        """The layer that it belongs to, such as stage2_block1/norm1; otherwise the source line."""
        around = self.operation.split("/")[:-1]
        return "/".join(part for part in around if part.isidentifier() and not _WRAPPER.fullmatch(part)) or self.source

    @property
    def direction(self) -> str:
        """Return "backward" if it computes gradients, otherwise "forward"."""
        return "backward" if "transpose(" in self.operation else "forward"


def find_kernels(module: Module) -> list[Kernel]:
    """Return the kernels of a compiled program.

    Raises:
      ValueError: a loop does not say how often it runs.
    """
    return list(_Reader(module).walk(module.entry, 1, ""))


def sum_kernels(kernels: Iterable[Kernel]) -> tuple[int, int]:
    """Return the number of kernels that run, and the bytes that they read and write."""
    kernels = list(kernels)
    return sum(kernel.times for kernel in kernels), sum(kernel.times * kernel.each for kernel in kernels)


def kernels_of_steps(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Return the kernels of the loop that moves more than half of the bytes; all of them if there is none."""
    by_loop: dict[str, list[Kernel]] = {}
    for kernel in (kernels := list(kernels)):
        by_loop.setdefault(kernel.loop, []).append(kernel)
    by_loop.pop("", None)
    most = max(by_loop.values(), key=lambda found: sum_kernels(found)[1], default=kernels)
    return most if 2 * sum_kernels(most)[1] > sum_kernels(kernels)[1] else kernels


class _Reader:
    def __init__(self, module: Module):
        self._module = module

    @cached_property
    def _sources(self) -> Sources:
        return Sources(self._module.header)

    def walk(self, name: str, times: int, loop: str) -> Iterator[Kernel]:
        """Yield the kernels of a computation that runs `times` times, inside an outermost loop or in none."""
        computation = self._module.computations[name]
        for instruction in computation.values():
            opcode = instruction.opcode
            if opcode in _FREE or not opcode or _ENDING.fullmatch(opcode):
                continue
            if opcode == "while":
                trips, body = count_trips(name, instruction, self._module), find_role(instruction, "body")
                if trips is None or body is None:
                    raise ValueError(f"how often {instruction.name} runs is not known: its text says no number")
                # A loop that runs a known number of times starts no kernel for its condition.
                yield from self.walk(body, times * trips, loop or instruction.name)
            elif opcode == "conditional":
                branches = [list(self.walk(called, times, loop)) for called in instruction.called]
                yield from max(branches, key=lambda branch: sum_kernels(branch)[1])
            elif opcode in _CALLS:
                for called in instruction.called:
                    yield from self.walk(called, times, loop)
            else:
                yield self._make_kernel(instruction, computation, times, loop)

    def _make_kernel(self, instruction: Instruction, computation: Computation, times: int, loop: str) -> Kernel:
        called = instruction.called[:1] if instruction.opcode == "fusion" else []
        fused = self._module.computations[called[0]] if called else {}
        sizes = [computation[operand].size for operand in instruction.operands if operand in computation]
        read, written = count_bytes(instruction, fused, sizes)
        name = re.search(r'op_name="([^"]*)"', instruction.metadata)
        return Kernel(
            name=instruction.name,
            kind=find_kind(instruction, fused),
            read=read,
            written=written,
            times=times,
            loop=loop,
            operation=name[1] if name else "",
            source=self._sources.find(instruction.metadata),
        )


def count_bytes(instruction: Instruction, fused: Computation, sizes: list[int]) -> tuple[int, int]:
    """Return the bytes that an instruction reads and writes.

    Args:
      fused: the computation of a fusion; empty for other instructions.
      sizes: bytes of its operands.
    """
    if fused:
        return _count_fused(fused, sizes)
    if instruction.opcode in _UPDATES:
        return sum(sizes[1:]), sizes[_UPDATES[instruction.opcode]]
    if instruction.opcode in _PICKS:
        return instruction.size + sum(sizes[1:]), instruction.size
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        # Except for all-reduce, the result of what only begins an operation holds its operands too.
        return sum(sizes), max(0, instruction.size - sum(sizes))
    return sum(sizes), instruction.size


def _count_fused(fused: Computation, sizes: list[int]) -> tuple[int, int]:
    """Return the bytes that a fusion reads and writes, given the bytes of its operands."""
    users: dict[str, list[Instruction]] = {}
    for inner in fused.values():
        for operand in inner.operands:
            users.setdefault(operand, []).append(inner)
    outputs = [_follow_bitcasts(output, fused) for output in _outputs(fused)]
    updates = {output.name for output in outputs if output.opcode in _UPDATES}
    read = list(sizes)
    for inner in fused.values():
        if inner.opcode == "parameter" and inner.index is not None and inner.index < len(read):
            picked = _count_picked(inner.name, users, updates)
            read[inner.index] = read[inner.index] if picked is None else min(read[inner.index], picked)
    written = [
        fused[output.operands[_UPDATES[output.opcode]]].size if output.name in updates else output.size
        for output in outputs
    ]
    return sum(read), sum(written)


def _outputs(fused: Computation) -> list[Instruction]:
    root = next(inner for inner in fused.values() if inner.root)
    return [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _follow_bitcasts(instruction: Instruction, fused: Computation) -> Instruction:
    while instruction.opcode == "bitcast":
        instruction = fused[instruction.operands[0]]
    return instruction


def _count_picked(name: str, users: Mapping[str, list[Instruction]], updates: Set[str]) -> int | None:
    """Count the bytes that a fusion reads of a value, if it reads only parts of it; otherwise None.

    Args:
      users: name -> the instructions that use the value of that name.
      updates: names of the outputs that are updated in place.
    """
    total = 0
    for user in users.get(name, []):
        first = user.operands[:1] == (name,) and name not in user.operands[1:]
        if user.opcode == "bitcast":
            picked = _count_picked(user.name, users, updates)
        elif first and user.opcode in _PICKS:
            picked = user.size
        else:
            picked = 0 if first and user.name in updates else None
        if picked is None:
            return None
        total += picked
    return total


def find_kind(instruction: Instruction, fused: Computation) -> str:
    """Return the kind of a kernel; a fusion is of the first kind in it that is not element-wise."""
    opcode = instruction.opcode.removesuffix("-start")
    inside = {inner.opcode for inner in fused.values()} | {opcode}
    if opcode in COLLECTIVE_KINDS:
        return "collective"
    if "convolution" in inside or '"__cudnn$conv' in instruction.text:
        return "convolution"
    if "dot" in inside or _PRODUCT_CALL.search(instruction.text):
        return "product"
    if inside & _REDUCTIONS:
        return "reduction"
    if inside & {"gather", "scatter"} or opcode in _PICKS:
        return "gather"
    if opcode in ("copy", "transpose"):
        return "copy"
    return "element-wise" if opcode == "fusion" else opcode
