"""Signals to a command: which of them end it at once, and which let it save what it is at. Imports no JAX."""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from loft_jax.errors import Interrupted, Preempted

# Seconds that a command has to end by itself after Ctrl-C.
_GRACE_SECONDS = 5.0
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGINT: "Ctrl-C"}
_NOTE = "note      Ctrl-C: saves what it is at, then stops; a second Ctrl-C leaves at once\n"


class _State:
    """Whether the process is at something that it saves when it is asked to stop."""

    saving = False


@contextmanager
def act_on_ctrl_c(line: str) -> Generator[None]:
    """End this process, with one line, at a second Ctrl-C at once, and soon after one that had no effect.

    Ctrl-C raises KeyboardInterrupt, as Python does. But where a library calls back, that can be lost; and while XLA
    compiles, it is not raised. So a thread hears of it too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    over = threading.Event()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader, line, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)


def _listen(reader: int, line: str, over: threading.Event) -> None:
    """Count Ctrl-C, whatever the main thread does."""
    count = 0
    while number := os.read(reader, 1):
        if number[0] != signal.SIGINT:
            continue
        count += 1
        if count > 1:
            _leave(line)
        threading.Thread(target=_leave_unless, args=(line, over), daemon=True).start()
    os.close(reader)


def _leave_unless(line: str, over: threading.Event) -> None:
    if not over.wait(_GRACE_SECONDS) and not _State.saving:
        _leave(line)


def _leave(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{line}\n".encode())
    os._exit(130)


class Preemption:
    """Context manager that notes what asks this process to stop in its block: SIGTERM, SIGHUP, Ctrl-C.

    Ctrl-C raises KeyboardInterrupt as well, except inside `saving`. A signal that is ignored, as nohup does, stays so.

    Attributes:
      requested: whether a stop was asked for.
      by: what asked for it, for messages.
    """

    def __init__(self) -> None:
        self.requested, self.by = False, _NAMES[signal.SIGTERM]

    def __enter__(self) -> "Preemption":
        heard = [number for number in _NAMES if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in heard}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def saving(self) -> Generator[None]:
        """Let Ctrl-C only be noted in this block, which looks often whether a stop was asked for, and saves then."""
        _State.saving = True
        try:
            yield
        finally:
            _State.saving = False

    def stopped(self, where: str) -> Preempted:
        """Make the exception that ends the command, when it has stopped as asked for; `where` says what is saved."""
        kind = Interrupted if self.by == _NAMES[signal.SIGINT] else Preempted
        return kind(f"stopped   by {self.by}{where}; run the same command again to resume")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.by = True, _NAMES[signal.Signals(number)]
        if number == signal.SIGHUP:
            _forget_terminal()
        if number == signal.SIGINT:
            if not _State.saving:
                raise KeyboardInterrupt
            with contextlib.suppress(OSError):
                os.write(2, _NOTE.encode())


def _forget_terminal() -> None:
    """Write to nowhere what would go to a terminal that was closed: an error there would keep a run from saving."""
    with open(os.devnull, "w") as nowhere:
        for output in (1, 2):
            with contextlib.suppress(OSError):
                if stat.S_ISCHR(os.fstat(output).st_mode):
                    os.dup2(nowhere.fileno(), output)
