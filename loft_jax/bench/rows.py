"""The rows of the bench: what is made of the times, and the table."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loft_jax.console import console, make_table
from loft_jax.errors import UserError, format_value, path_problem
from loft_jax.files import stop_on_write_error, write_atomically
from loft_jax.storage import line_of

Row = dict[str, Any]


def ratio_row(what: str, a: list[float], b: list[float], unit: str) -> Row:
    """Make a row: the median, least and largest of the ratios a/b of the pairs, and the medians of a and b."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return {
        "what": what,
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "largest": max(ratios),
        "pairs": len(ratios),
        "a": statistics.median(a),
        "b": statistics.median(b),
        "unit": unit,
    }


def print_row(row: Row) -> None:
    """Print a row on one line, the moment it is measured."""
    print(f"{row['ratio']:.3f}  {row['what']}", flush=True)


def print_table(machine: Row, rows: Sequence[Row]) -> None:
    """Print all rows as a table, titled by the machine."""
    title = ", ".join(f"{key} {value}" for key, value in machine.items())
    table = make_table(title, "A over B", "ratio (median)", "least", "largest", "A", "B")
    for row in rows:
        spread = [f"{row[key]:.3f}" for key in ("ratio", "least", "largest")]
        table.add_row(row["what"], *spread, *(f"{row[key]:,.4g} {row['unit']}" for key in ("a", "b")))
    console().print(table)


def check_writable(option: str, file: str) -> None:
    """Raise UserError if a file cannot be written. Called first, because measuring takes minutes."""
    if problem := path_problem(file):
        raise UserError(f"{option} {format_value(file)}: {problem}; use the name of a file")
    if not Path(file).absolute().parent.is_dir():
        raise UserError(f"{option} {file}: its directory does not exist; make it first")
    if Path(file).is_dir():
        raise UserError(f"{option} {file}: is a directory; use the name of a file")


def append_row(file: str, machine: Row, row: Row) -> None:
    """Append a row and the machine, as a line of JSON with a checksum. Raises RunStopped if they cannot be written."""
    with stop_on_write_error(Path(file)), open(file, "a", encoding="utf-8") as lines:
        lines.write(line_of({**row, "machine": machine}))


def write_report(file: str, setting: Row, machine: Row, rows: list[Row]) -> None:
    """Write the table as JSON: {"setting", "machine", "rows"}."""
    report = {"setting": setting, "machine": machine, "rows": rows}
    write_atomically(Path(file), json.dumps(report, indent=2) + "\n")
