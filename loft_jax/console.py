"""What a terminal shows: tables, a progress bar, sizes and times. Imports no JAX and no NumPy."""

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """What shows progress as a bar on a terminal, while it is used as a context manager."""

    _bar: "Progress | None" = None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar:
            self._bar.stop()


def make_table(title: str, *headings: str, left: int = 1) -> "Table":
    """An empty table whose first columns, `left` of them, hold text, and the others numbers."""
    from rich.table import Table

    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < left else "right", no_wrap=i == 0)
    return table


def console() -> "Console":
    """A console for tables; as wide as they need where no terminal sets a width."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def megabytes(size: float) -> str:
    """Bytes as people say them: "1,234.50 MB", of 1e6 bytes."""
    return f"{size / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """Seconds as people say them: "48 s", "3 min 20 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
