"""A command as a process of its own: its output in a log, stopped when time is up, gone when this process is."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loft_jax.files import stop_on_write_error

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
_SECONDS_BETWEEN_LOOKS = 0.1
_TAIL_BYTES = 4000


class Process:
    """A running command.

    Args:
      command: its arguments.
      log: file to which its output is added.
      asks_nicely: the signal at which it saves its state and ends.
    """

    def __init__(self, command: Sequence[str], log: Path, asks_nicely: int = signal.SIGTERM):
        self._signal = asks_nicely
        with stop_on_write_error(log), open(log, "ab") as file:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            self._log_start = file.tell()
            self._log = log
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_die_with(os.getpid()),
            )

    def wait(self, seconds: float, stop: Callable[[], bool], each: Callable[[], Any]) -> str | None:
        """Wait for its end, for so many seconds at most.

        Args:
          stop: asked all the time whether to end it; each: called all the time.

        Returns:
          None if it has ended by itself; otherwise why it should be ended: "time" or "stop".
        """
        deadline = time.monotonic() + seconds
        while self._popen.poll() is None:
            if stop():
                return "stop"
            if time.monotonic() > deadline:
                return "time"
            each()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return None

    def end(self, patience: float) -> None:
        """Ask it to end, and kill it if it has not ended after so many seconds."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(self._signal)
        try:
            self._popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()
        self._popen.wait()

    @property
    def exit_code(self) -> int:
        """Exit code of the ended process; negative if a signal ended it."""
        return self._popen.wait()

    @property
    def last_line(self) -> str:
        """The last line that it has printed; "" if there is none."""
        return next(reversed(self.lines), "")

    @property
    def lines(self) -> list[str]:
        """The last lines that it has printed, without empty ones."""
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
            return [line.strip() for line in text.splitlines() if line.strip()]
        return []


def _die_with(parent: int) -> Callable[[], None] | None:
    """Make what a new process does first: it lets itself be killed when its parent ends, however that ends.

    Only Linux can do this. Elsewhere the lock of a run directory keeps a left process and a new one apart.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        # A parent that was started in the background ignores Ctrl-C, and pytest is ended by it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return ask
