"""Where the kernels and bytes of a local step go, by layer or function: tables for a person, and rows for programs."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from loft_jax.console import console, make_table
from loft_jax.cost import Kernel
from loft_jax.errors import UserError
from loft_jax.plan.plan import Plan

COLUMNS = (
    "program",
    "kernel",
    "kind",
    "direction",
    "layer",
    "source",
    "operation",
    "runs",
    "bytes_read",
    "bytes_written",
)
_MOST_ROWS = 40


@dataclass(frozen=True)
class StepKernel:
    """A kernel of the local steps of a round.

    Attributes:
      program: name of its program.
      runs: runs in one local step.
    """

    program: str
    kernel: Kernel
    runs: float

    @property
    def moved(self) -> float:
        """Bytes that it reads and writes in one local step."""
        return self.runs * self.kernel.each


def step_kernels(plan: Plan) -> list[StepKernel]:
    """Return the kernels of a local step, of every program that runs in steps. Raises UserError if none are known."""
    found = [
        StepKernel(program.name, kernel, runs)
        for program in plan.programs
        for kernel, runs in plan.step_kernels(program)
    ]
    if not found:
        raise UserError(f"--kernels: the compiler for {plan.topology.name} shows no kernels; leave it out")
    return found


def as_kernel_rows(kernels: list[StepKernel]) -> Iterator[tuple[Any, ...]]:
    """Yield a row for each kernel, in the order in which they run; columns are `COLUMNS`."""
    for one in kernels:
        kernel = one.kernel
        where = (kernel.kind, kernel.direction, kernel.layer, kernel.source, kernel.operation)
        yield (one.program, kernel.name, *where, one.runs, kernel.read, kernel.written)


def print_kernels(kernels: list[StepKernel]) -> None:
    """Print the kernels of a local step by what they do, and by layer, the most bytes first."""
    count, moved = sum(one.runs for one in kernels), sum(one.moved for one in kernels)
    print(f"{'kernels':<9} {count:,.0f} a local step; they read and write {moved / 1e9:,.3f} GB")
    kinds = _sum_by(kernels, lambda kernel: (_class(kernel), kernel.direction, kernel.kind))
    _print_shares("a local step by what it does", ("what", "direction", "kind"), kinds, count, moved)
    layers = _sum_by(kernels, lambda kernel: (kernel.layer or "not named", _function(kernel)))
    _print_shares("a local step by layer", ("layer", "function"), layers, count, moved)


def _class(kernel: Kernel) -> str:
    """Return the name of a kernel's layer without numbers and without the layers around it; otherwise its function."""
    if kernel.layer == kernel.source:
        return _function(kernel) or "not named"
    return re.sub(r"\d+", "", kernel.layer.rpartition("/")[2])


def _function(kernel: Kernel) -> str:
    return kernel.source.partition(" (")[0].rpartition("<locals>.")[0].rstrip(".") or kernel.source.partition(" (")[0]


def _sum_by(
    kernels: list[StepKernel], key: Callable[[Kernel], tuple[str, ...]]
) -> list[tuple[tuple[str, ...], float, float]]:
    """Return (key, kernels, bytes) of a local step, the most bytes first."""
    total: dict[tuple[str, ...], tuple[float, float]] = {}
    for one in kernels:
        count, moved = total.get(key(one.kernel), (0.0, 0.0))
        total[key(one.kernel)] = (count + one.runs, moved + one.moved)
    return sorted(((name, *sums) for name, sums in total.items()), key=lambda row: row[2], reverse=True)


def _print_shares(
    title: str,
    names: tuple[str, ...],
    rows: list[tuple[tuple[str, ...], float, float]],
    count: float,
    moved: float,
) -> None:
    table = make_table(title, *names, "kernels", "", "MB", "", left=len(names))
    for name, own, size in rows[:_MOST_ROWS]:
        shares = [f"{own / count:.1%}", f"{size / moved:.1%}"] if moved else ["", ""]
        table.add_row(*name, f"{own:,.0f}", shares[0], f"{size / 1e6:,.2f}", shares[1])
    if rest := rows[_MOST_ROWS:]:
        own, size = sum(row[1] for row in rest), sum(row[2] for row in rest)
        blank = [""] * (len(names) - 1)
        table.add_row(
            f"{len(rest)} more",
            *blank,
            f"{own:,.0f}",
            f"{own / count:.1%}",
            f"{size / 1e6:,.2f}",
            f"{size / moved:.1%}",
        )
    console().print(table)
