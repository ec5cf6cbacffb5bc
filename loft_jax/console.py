"""Output for people: streams that end no command, signs of life, tables, a progress bar, sizes and times.

Imports neither JAX nor NumPy.
"""

import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

# Progress, and a command that is silent, say something at least every ten seconds, and within five of the start.
SECONDS_BETWEEN_LINES = 6.0
_SILENT_AT_START, _SILENT, _LOOK = 2.5, 8.0, 0.25

# For streams that have ASCII alone.
_SPELT = str.maketrans({"±": "+/-", "…": "...", "≥": ">=", "≤": "<="})


class Output:
    """A text stream that loses text rather than end a command: what cannot be encoded is spelt, a full disk is noted.

    Otherwise it is the stream that it wraps.

    Attributes:
      lost: why text was lost; None if none was.
      last_written: when something was written, by `time.monotonic`; None before.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: str | None = None
        self.last_written: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text. Raises BrokenPipeError where the program that reads it has ended."""
        self.last_written = time.monotonic()
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self._stream.write(text.translate(_SPELT).encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts, as `write` does."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush. Raises BrokenPipeError as `write`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        self.lost = error.strerror or str(error)
        # Otherwise what is left in the buffer fails again, when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def guarded_output(signs: Literal["stdout", "stderr"] = "stdout") -> Generator[Output]:
    """Give stdout and stderr in a form that ends no command, with a sign of life where one of them is silent.

    A stream that is closed becomes one to nowhere. Inside another call nothing changes.

    Args:
      signs: where signs of life go; a command that prints data for programs on stdout has them on stderr.

    Yields:
      What is stdout now.
    """
    before = sys.stdout, sys.stderr
    if isinstance(before[0], Output):
        yield before[0]
        return
    ended = threading.Event()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, err = (Output(stream or nowhere) for stream in before)
        sys.stdout, sys.stderr = out, err
        watched = err if signs == "stderr" else out
        threading.Thread(target=_give_signs, args=(watched, signs, ended), daemon=True).start()
        try:
            yield out
        finally:
            ended.set()
            sys.stdout, sys.stderr = before


_doing = ""


def now_doing(what: str) -> None:
    """Say, for signs of life, what a command is doing: "compiling the first round"."""
    global _doing
    _doing = what


def _give_signs(watched: Output, stream: str, ended: threading.Event) -> None:
    """Print a line whenever nothing was written for a while."""
    start = time.monotonic()
    while not ended.wait(_LOOK):
        now, last = time.monotonic(), watched.last_written
        if now - (last or start) >= (_SILENT if last else _SILENT_AT_START):
            # By its name, because other processes of a run turn the stream off.
            print(
                f"working   {duration(now - start)}" + f", {_doing}" * bool(_doing),
                file=getattr(sys, stream),
                flush=True,
            )
            watched.last_written = now


def shows_bars(stream: Any = None) -> bool:
    """Whether a stream, stdout if none is given, is a terminal that can draw a bar again and again in one place."""
    stream = stream or sys.stdout
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class ProgressBar:
    """Base class of what shows progress as a bar on a terminal; use it as a context manager."""

    _bar: "Progress | None" = None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar:
            self._bar.stop()


def make_table(title: str, *headings: str, left: int = 1) -> "Table":
    """Make an empty table with a title; the first `left` columns hold text, the others numbers.

    Where it is too wide, text goes on in the next line, and is never cut: two names stay two names.
    """
    from rich.table import Table

    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < left else "right", overflow="fold")
    return table


def console() -> "Console":
    """Make a console for tables; if the output is no terminal, it is 120 characters wide."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def megabytes(size: float) -> str:
    """Format a number of bytes: "1,234.50 MB"; 1 MB is 1e6 bytes."""
    return f"{size / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """Format a number of seconds: "48 s", "3 min 20 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
