"""Rows of metrics: the numbers in them, and the file that keeps them. Imports neither JAX nor NumPy."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from loft_jax.errors import format_literal
from loft_jax.files import put_aside, stop_on_write_error, write_atomically
from loft_jax.storage.records import (
    CHECKSUM,
    Count,
    Finite,
    NonNegative,
    Schema,
    Share,
    checksum,
    is_as_written,
    parse_object,
)

Row = dict[str, Any]

_FEW = 6
_WHOLE = ("round", "step")
_LARGEST = sys.float_info.max
_SCHEMA = Schema(
    needed={"round": Count},
    optional={
        **{"step": Count, "epoch": NonNegative, "train/loss": Finite, "learning_rate": Finite},
        **{"test/loss": Finite, "test/accuracy": Share, "validation/loss": Finite, "validation/accuracy": Share},
        **dict.fromkeys(("images_per_second", "share_of_peak", "bytes_on_the_wire"), NonNegative),
        **dict.fromkeys(("distance/worst", "distance/mean"), NonNegative),
    },
)


class JsonLines:
    """Rows as JSON, a line each, in a file that can also be read back and cut.

    A row has a checksum of its values in the file. `owner` says whose rows they are: a row of another run has another
    checksum.
    """

    def __init__(self, path: Path, owner: str = ""):
        self._path, self._owner = path, owner

    def start(self, rows: Sequence[Row]) -> None:
        """Write the file again, with these rows. What is lost by that is kept beside it, as NAME.damaged."""
        if self.read()[1]:
            put_aside(self._path)
        write_atomically(self._path, "".join(self._line(row) for row in rows))

    def append(self, row: Row) -> None:
        """Add a line."""
        with stop_on_write_error(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(self._line(row))

    def _line(self, row: Row) -> str:
        return json.dumps({**row, CHECKSUM: checksum(row, self._owner)}) + "\n"

    def read(self) -> tuple[list[Row], list[str]]:
        """Read all sound rows, in the order of their rounds, each round once; nulls are left out.

        Returns:
          The rows, and why each other line was left out. A last line without its end is not mentioned: a killed process
          leaves it.
        """
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return [], []
        except OSError as error:
            return [], [f"cannot be read ({error.strerror})"]
        found: dict[int, list[Row]] = {}
        problems = []
        lines = text.split("\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = self._parse(line)
                found.setdefault(row["round"], []).append(row)
            except ValueError as error:
                if number < len(lines):
                    problems.append(f"line {number}: {error}")
        for number, rows in found.items():
            if any(row != rows[0] for row in rows):
                problems.append(f"round {number} is there {len(rows)} times, with different values")
                rows.clear()
        return [found[number][0] for number in sorted(found) if found[number]], problems

    def rows(self) -> list[Row]:
        """Read all sound rows, in the order of their rounds."""
        return self.read()[0]

    def _parse(self, line: str) -> Row:
        row = parse_object(line)
        sound = is_as_written(row, self._owner)
        row = {key: _number(key, value) for key, value in row.items() if key != CHECKSUM and value is not None}
        if problem := _SCHEMA.problem(row):
            raise ValueError(problem)
        if not sound:
            raise ValueError("was changed after it was written, or is of another run (its checksum does not match)")
        return row


def _number(key: str, value: Any) -> int | float:
    """Return a value of a row. Raises ValueError if it is no finite number, or negative where it is a time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{key}: {format_literal(value)}: must be a finite number")
    if key.startswith("seconds/") and value < 0:
        raise ValueError(f"{key}: {format_literal(value)}: must not be negative")
    # Libraries of tables write whole numbers as 3.0 where others of the column are missing.
    return int(value) if key in _WHOLE and int(value) == value else value


def missing_rounds(rows: Iterable[Row], last: int) -> list[int]:
    """Rounds up to the last one that have no row, ascending."""
    return sorted({*range(last + 1)} - {row["round"] for row in rows})


def describe_rounds(rounds: Sequence[int]) -> str:
    """Name rounds for a message: "2", "2 to 7" if there are all between, "2, 4", or "2 to 9, 5 of them"."""
    first, last, count = rounds[0], rounds[-1], len(rounds)
    if 2 < count == last - first + 1:
        return f"{first} to {last}"
    return ", ".join(map(str, rounds)) if count <= _FEW else f"{first} to {last}, {count} of them"


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
