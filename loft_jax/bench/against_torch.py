"""Our steps and rounds against the same in PyTorch, on CPU cores: python -m loft_jax.bench --torch"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from loft_jax.bench.rows import Row, ratio_row
from loft_jax.bench.sides import Case, serve
from loft_jax.errors import RunStopped, UserError

_SECONDS_A_TURN = 1.0
# Threads of the side that has just run spin for some milliseconds before they sleep.
_SECONDS_BETWEEN_TURNS = 0.02


def check_torch() -> None:
    """Raise UserError if PyTorch is not installed, or processes cannot be bound to cores here."""
    if find_spec("torch") is None:
        raise UserError("--torch: PyTorch is not installed; pip install 'loft_jax[torch]', or leave --torch out")
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--torch: this system cannot bind a process to cores; run it on Linux, or leave --torch out")


def cases() -> list[Case]:
    """Return what is compared here: steps on one and on two cores, and a round on two; fewer where there is one."""
    available = len(os.sched_getaffinity(0))
    counts = [cores for cores in (1, 2) if cores <= available]
    networks = [("preresnet18", 16, 32), ("preresnet20", 16, 128)]
    steps = [
        Case(what, *network, cores)
        for network in networks
        for cores in counts
        for what in ("full step", "compact step")
    ]
    return [*steps, Case("round", *networks[0], counts[-1])]


def compare(case: Case, pairs: int) -> Iterator[Row]:
    """Measure a case: both sides in turn, in one run. Yields our speed over PyTorch's by wall and processor time."""
    cores = sorted(os.sched_getaffinity(0))[: case.cores]
    with _Side("ours", case, cores) as ours, _Side("torch", case, cores) as torch:
        for side in (ours, torch):
            side.wait()
        slower = max(ours.run(1)[0], torch.run(1)[0])
        units = max(1, round(_SECONDS_A_TURN / slower))
        turns = [(ours.run(units), torch.run(units)) for _ in range(pairs)]
    for i, kind in enumerate(("wall time", "processor time")):
        a, b = ([case.images * units / turn[side][i] for turn in turns] for side in (0, 1))
        yield ratio_row(f"our images/s over PyTorch's by {kind}: {case}", a, b, "images/s")


def versions() -> Row:
    """Describe the machine and the libraries that are compared."""
    load = f"{os.getloadavg()[0]:.1f}"
    return {"cores": os.cpu_count(), "load at the start": load, "jax": version("jax"), "torch": version("torch")}


class _Side:
    """A process that runs one side of a case. Use as a context manager."""

    def __init__(self, name: str, case: Case, cores: list[int]):
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, case, cores), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._connection.send(0)
        else:
            self._process.terminate()
        self._process.join()

    def wait(self) -> None:
        """Wait until the program is compiled and has run once."""
        self._receive()

    def run(self, units: int) -> tuple[float, float]:
        """Run units of the case. Returns wall seconds and processor seconds."""
        time.sleep(_SECONDS_BETWEEN_TURNS)
        self._connection.send(units)
        return self._receive()

    def _receive(self) -> tuple[float, float]:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise RunStopped(
                f"the process of {self._name} ended with exit code {self._process.exitcode}; its output is above"
            ) from None
