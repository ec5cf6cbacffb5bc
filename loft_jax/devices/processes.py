"""The processes of one run: how they connect, agree and end. JAX is loaded only if there are several.

All of them run the same programs in the same order, and all write saved states. Only the first one prints, and only it
writes the other files.
"""

import contextlib
import os
import re
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
from typing import TextIO

from loft_jax.config import Config, Distributed
from loft_jax.console import now_doing
from loft_jax.errors import Preempted, RunStopped, UserError, exit_code

_SHUTDOWN_SECONDS = 60
# Time after which a file written by one process is visible to the others, on file systems that cache their answers.
_VISIBLE_SECONDS = 15.0
# Words in the errors of JAX, and of the libraries by which it communicates, when another process does not answer.
_LOST_CONNECTION = re.compile(
    "gloo|nccl|peer|connect|socket|barrier|heartbeat|coordination|unavailable|deadline|timed? ?out", re.IGNORECASE
)


@dataclass(frozen=True)
class Processes:
    """The number of this process, and how many processes the run has."""

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
    """Set up JAX and connect to the other processes, as `config.distributed` says; call before JAX finds its devices.

    Without other processes nothing is done, and JAX is not loaded.
    An exception inside the block ends this process at once, without waiting for the others. They notice it, and stop.

    Raises:
      UserError: JAX detects no job of several processes, or they have different numbers of devices.
      RunStopped: the processes do not connect in time, or the coordinator's port is taken.
    """
    if not config.distributed.is_enabled:
        yield Processes()
        return
    # Which process this is, `auto` only tells when they have connected.
    with _silence_output() if config.distributed.process_id else contextlib.nullcontext():
        now_doing("loading JAX, connecting to the other processes")
        from loft_jax.devices.setup import configure_jax

        configure_jax(config)
        processes = _connect(config.distributed)
    try:
        with _report_unexpected_exit(processes), contextlib.nullcontext() if processes.is_first else _silence_output():
            yield processes
    except BaseException as stop:
        if processes.count == 1:
            raise
        _end_process(processes, stop)


def run_on_first(processes: Processes, action: Callable[[], bool]) -> bool:
    """Run an action on the first process only, and return its answer on every process.

    If the action raises UserError or RunStopped, every process stops.
    """
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
    """Combine a number from every process: return the largest, or what `combine` returns. All must call it."""
    import jax

    if jax.process_count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return combine(multihost_utils.process_allgather(np.int32(value)).tolist())


def check_visible(processes: Processes, path: os.PathLike[str]) -> None:
    """Raise RunStopped if a file that the first process has written is still not visible here after some seconds."""
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise RunStopped(
                f"{path}: is not visible to {processes}, but the first process has written it; use a run directory on "
                "a file system that all processes share"
            )
        time.sleep(0.2)


def _connect(settings: Distributed) -> Processes:
    import jax

    if settings.coordinator is not None and settings.process_id == 0:
        _check_port(settings, int(settings.coordinator.rpartition(":")[2]))
    if settings.coordinator is not None:
        _reach_without_proxy(settings.coordinator.rpartition(":")[0].strip("[]"))
    # JAX's own handler of SIGTERM would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    # If the processes do not connect in time, JAX aborts with a stack trace; the timer says what to do before that.
    timer = threading.Timer(settings.start_seconds, _exit_at_timeout, [settings])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.processes,
            settings.process_id,
            initialization_timeout=settings.start_seconds + _SHUTDOWN_SECONDS,
            heartbeat_timeout_seconds=settings.heartbeat_seconds,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        kind = UserError if settings.coordinator is None else RunStopped
        raise kind(_not_connected_text(settings, str(error).split("\n")[0])) from None
    finally:
        timer.cancel()
    _check_devices(Counter(device.process_index for device in jax.devices()))
    return Processes(jax.process_index(), jax.process_count())


def _reach_without_proxy(host: str) -> None:
    """Let the processes of the run connect directly, where the environment has a proxy for everything else."""
    import jax

    # The library looks at the first of these that is set.
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        if name == "no_proxy" or name in os.environ:
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))
    if "jax_check_proxy_envs" in jax.config.values:
        jax.config.update("jax_check_proxy_envs", False)


def _check_devices(counts: Mapping[int, int]) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {process} has {count}" for process, count in sorted(counts.items()))
        raise UserError(f"distributed: every process must have the same number of devices, but {listed}")


def _check_port(settings: Distributed, port: int) -> None:
    """Raise RunStopped if the coordinator's port is taken, because JAX may crash then."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise RunStopped(_not_connected_text(settings, f"its port: {error.strerror}")) from None


def _exit_at_timeout(settings: Distributed) -> None:
    waited = f"waited for distributed.start_seconds={settings.start_seconds}"
    print(f"error: {_not_connected_text(settings, waited)}", file=sys.stderr, flush=True)
    os._exit(1)


def _not_connected_text(settings: Distributed, reason: str) -> str:
    if settings.coordinator is None:
        return (
            f"distributed.mode=auto: the processes of a SLURM, Cloud TPU, Kubernetes or Open MPI job are not found "
            f"({reason}); start all processes with one of these, or set distributed.coordinator, distributed.processes "
            "and distributed.process_id"
        )
    return (
        f"distributed.coordinator={settings.coordinator}: process {settings.process_id} of {settings.processes} could "
        f"not connect to the others ({reason}); start all processes, with the host of process 0 as coordinator and a "
        "port that is free there and open to the others"
    )


@contextlib.contextmanager
def _report_unexpected_exit(processes: Processes) -> Generator[None]:
    """Start a shell that prints a message if this process is killed, or aborted by JAX because another process died."""
    text = (
        f"error: {processes} exited unexpectedly (killed, or aborted after another process died); see the output of "
        "the other processes. Start all processes again: the run resumes from its newest checkpoint"
    )
    # The shell reads a line if the block ends normally. If this process is killed, the pipe closes, and `read` fails.
    command = ["sh", "-c", 'read -r _ || echo "$1" >&2', "sh", text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as shell:
        assert shell.stdin is not None  # It is the pipe.
        try:
            yield
        finally:
            shell.stdin.write(b"\n")


@contextlib.contextmanager
def _silence_output() -> Generator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _end_process(processes: Processes, stop: BaseException) -> None:
    """Print the reason and end this process, without JAX's shutdown, which waits for processes that may be dead."""
    if isinstance(stop, Preempted):
        # All processes stop together, and the first one prints the message.
        if processes.is_first:
            raise stop
        sys.exit(exit_code(stop))
    # The program that reads the output may have ended too.
    with contextlib.suppress(OSError):
        code = 1
        code = _print_reason(processes, stop, sys.stderr)
        sys.stdout.flush()
    if processes.is_first:
        # The first process ends last: when it has ended, JAX ends the others before they have printed their messages.
        time.sleep(2)
    os._exit(code)


def _print_reason(processes: Processes, stop: BaseException, stream: TextIO) -> int:
    """Print why this process stops, and return its exit code."""
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
    lost_connection = isinstance(stop, jax.errors.JaxRuntimeError) and _LOST_CONNECTION.search(str(stop))
    if lost_connection or isinstance(stop, TimeoutError):
        reason = str(stop).split("\n")[0]
        print(
            f"error: {processes} lost the connection to another process, which probably died; see its output "
            f"({reason}). Start all processes again: the run resumes from its newest checkpoint",
            file=stream,
        )
        return 1
    traceback.print_exception(stop, file=stream)
    return 1
