"""The processes of one run: how they find each other, agree, and leave; JAX is loaded only where there are several.

All of them run the same programs in the same order. The first alone prints, and writes what is not a saved state.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from types import FrameType
from typing import Any, TextIO

from loft_jax.config import Config, Distributed
from loft_jax.errors import Preempted, RunStopped, UserError, exit_code

_SECONDS_TO_LEAVE = 60
# How long what one process has written may take to be seen by another, on file systems that remember answers.
_SECONDS_TO_SEE = 15.0
# What JAX, and those it sends by, say when another process does not answer.
_OF_OTHERS = re.compile(
    "gloo|nccl|peer|connect|socket|barrier|heartbeat|coordination|unavailable|deadline|timed? ?out", re.IGNORECASE
)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.index == 0

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


@contextlib.contextmanager
def connect_processes(config: Config) -> Generator[Processes]:
    """Join the processes that `config.distributed` asks for; call before JAX sees its devices.

    What stops one process inside the block stops it at once, without waiting for the others to finish: they notice.

    Raises:
      UserError: there is no job whose processes JAX knows, or they have unequal numbers of devices.
      RunStopped: they do not meet in time, or the coordinator's port is taken.
    """
    if not config.distributed.is_enabled:
        yield Processes()
        return
    processes = _join(config.distributed)
    try:
        with _witness(processes), contextlib.nullcontext() if processes.is_first else _silent():
            yield processes
    except BaseException as stop:
        if processes.count == 1:
            raise
        _leave(processes, stop)


def run_on_first(processes: Processes, action: Callable[[], bool]) -> bool:
    """Do something on the first process alone; its answer is everyone's. If it refuses, every process stops."""
    answer, refusal = 0, None
    if processes.is_first:
        try:
            answer = int(action())
        except (UserError, RunStopped) as stop:
            answer, refusal = -exit_code(stop), stop
    if processes.count > 1:
        answer = reduce_over_processes(answer, itemgetter(0))
    if answer < 0:
        raise refusal or SystemExit(-answer)
    return bool(answer)


def reduce_over_processes(value: int, combine: Callable[..., int] = max) -> int:
    """What all processes make of a number that each has: the largest, or what else `combine` says. All must call."""
    import jax

    if jax.process_count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return combine(multihost_utils.process_allgather(np.int32(value)).tolist())


def check_visible(processes: Processes, path: os.PathLike) -> None:
    """Raise RunStopped unless this process sees what the first one has written; waits a little for it."""
    deadline = time.monotonic() + _SECONDS_TO_SEE
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise RunStopped(
                f"{path}: {processes} does not see it, and the first process has written it; use a run directory on a "
                "file system that all processes share"
            )
        time.sleep(0.2)


def _join(settings: Distributed) -> Processes:
    import jax

    if settings.coordinator is not None and settings.process_id == 0:
        _check_port(settings, int(settings.coordinator.rpartition(":")[2]))
    # JAX's own handler would take SIGTERM away from ours.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX aborts with a stack trace where processes do not meet in time; a little earlier it is said what to do.
    timer = threading.Timer(settings.start_seconds, _give_up, [settings])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.processes,
            settings.process_id,
            initialization_timeout=settings.start_seconds + _SECONDS_TO_LEAVE,
            heartbeat_timeout_seconds=settings.heartbeat_seconds,
            shutdown_timeout_seconds=_SECONDS_TO_LEAVE,
        )
    except (ValueError, RuntimeError) as error:
        kind = UserError if settings.coordinator is None else RunStopped
        raise kind(_not_joined(settings, str(error).split("\n")[0])) from None
    finally:
        timer.cancel()
    _check_devices(Counter(device.process_index for device in jax.devices()))
    return Processes(jax.process_index(), jax.process_count())


def _check_devices(counts: Mapping[int, int]) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {process} has {count}" for process, count in sorted(counts.items()))
        raise UserError(f"distributed: every process must have as many devices as the others, and {listed}")


def _check_port(settings: Distributed, port: int) -> None:
    """JAX may crash where the coordinator's port is taken."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise RunStopped(_not_joined(settings, f"its port: {error.strerror}")) from None


def _give_up(settings: Distributed) -> None:
    waited = f"waited for distributed.start_seconds={settings.start_seconds}"
    print(f"error: {_not_joined(settings, waited)}", file=sys.stderr, flush=True)
    os._exit(1)


def _not_joined(settings: Distributed, reason: str) -> str:
    if settings.coordinator is None:
        return (
            f"distributed.mode=auto: the processes of a SLURM, Cloud TPU, Kubernetes or Open MPI job are not found "
            f"({reason}); start all of them by one of these, or give distributed.coordinator, distributed.processes "
            "and distributed.process_id"
        )
    return (
        f"distributed.coordinator={settings.coordinator}: process {settings.process_id} of {settings.processes} has "
        f"not met the others ({reason}); start all of them, with the coordinator where process 0 runs, at a port that "
        "is free there and open to the others"
    )


@contextlib.contextmanager
def _witness(processes: Processes) -> Generator[None]:
    """A shell that speaks for this process where it cannot: JAX and what it sends by abort when others are gone."""
    text = (
        f"error: {processes} has ended without a word: killed, or aborted because another one has died; see above, and "
        "what the others said. Start all processes again: the run goes on from its newest checkpoint"
    )
    # It reads a line if all is well; its end of the pipe closes when this process is gone.
    command = ["sh", "-c", 'read -r _ || echo "$1" >&2', "sh", text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as shell:
        assert shell.stdin is not None  # It is the pipe.
        try:
            yield
        finally:
            shell.stdin.write(b"\n")


@contextlib.contextmanager
def _silent() -> Generator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _leave(processes: Processes, stop: BaseException) -> None:
    """Say why, and end the process; without the farewell at exit, which waits for processes that may be gone."""
    if isinstance(stop, Preempted):
        # All of them leave together, and the first says so.
        if processes.is_first:
            raise stop
        sys.exit(0)
    # Whoever reads the output may have gone too.
    with contextlib.suppress(OSError):
        code = 1
        code = _say(processes, stop, sys.stderr)
        sys.stdout.flush()
    if processes.is_first:
        # It goes last, for without it JAX ends the others before they have said what they know.
        time.sleep(2)
    os._exit(code)


def _say(processes: Processes, stop: BaseException, stream: TextIO) -> int:
    """Print why this process stops; returns its exit code."""
    import jax

    if isinstance(stop, SystemExit):
        return int(stop.code or 0)
    if isinstance(stop, KeyboardInterrupt):
        print(f"interrupted ({processes})", file=stream)
        return 130
    if isinstance(stop, UserError | RunStopped):
        print(f"error: {stop} ({processes})", file=stream)
        return exit_code(stop)
    if isinstance(stop, BrokenPipeError):
        return 1
    told = isinstance(stop, jax.errors.JaxRuntimeError) and _OF_OTHERS.search(str(stop))
    if told or isinstance(stop, TimeoutError):
        reason = str(stop).split("\n")[0]
        print(
            f"error: {processes} lost touch with another one, which has most likely died; see what that one said, or "
            f"what ended it ({reason}). Start all processes again: the run goes on from its newest checkpoint",
            file=stream,
        )
        return 1
    traceback.print_exception(stop, file=stream)
    return 1


class Preemption:
    """Whether SIGTERM has come to this process since the block was entered. Use as a context manager."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Preemption":
        self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
