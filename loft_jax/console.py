"""Output for a terminal: tables, a progress bar, sizes and times. Imports neither JAX nor NumPy."""

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

SECONDS_BETWEEN_LINES = 10.0


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
    """Make an empty table with a title; the first `left` columns hold text, the others numbers."""
    from rich.table import Table

    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < left else "right", no_wrap=i == 0)
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
