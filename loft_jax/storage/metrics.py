"""Rows of metrics: the numbers in them, and the file that keeps them. Imports neither JAX nor NumPy."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loft_jax.files import stop_on_write_error, write_atomically

Row = dict[str, Any]


class JsonLines:
    """Rows as JSON, a line each, in a file that can also be read back and cut."""

    def __init__(self, path: Path):
        self._path = path

    def start(self, rows: Sequence[Row]) -> None:
        """Write the file again, with these rows."""
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in rows))

    def append(self, row: Row) -> None:
        """Add a line."""
        with stop_on_write_error(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[Row]:
        """Read all rows, up to the first that is truncated or damaged."""
        if not self._path.exists():
            return []
        rows = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or "round" not in row:
                break
            rows.append(row)
        return rows


def scalars(row: Row) -> Row:
    """Return the numbers of a row, except the round, which is their step."""
    return {key: value for key, value in row.items() if key != "round" and isinstance(value, int | float)}


def with_times(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Each row and when it was measured, in seconds since 1970, if the last was now and rounds follow each other."""
    measured, timed = time.time(), []
    for row in reversed(rows):
        timed.append((row, measured))
        measured -= sum(seconds for key, seconds in row.items() if key.startswith("seconds/"))
    return timed[::-1]
