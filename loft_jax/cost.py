"""What pretraining costs: python -m loft_jax.cost --paper

The paper's table of communication, printed and predicted from the models.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from typing import Any

from loft_jax.cli import run_command

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m loft_jax.cost", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--paper", action="store_true", required=True, help="the paper's table")
    parser.add_argument("--format", choices=("table", "csv"), default="table", help="(default: table)")
    arguments = parser.parse_args()
    from loft_jax.published import COLUMNS, communication_table

    rows = communication_table()
    if arguments.format == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_table(rows)


def print_table(rows: Sequence[Row]) -> None:
    """The rows for people."""
    from rich.table import Table

    from loft_jax.progress import console

    table = Table(title="communication of the whole pretraining, GB (1e9 bytes)")
    for heading in ("setting", "method", "published", "predicted", "error", "as printed", "GPipe over LoFT"):
        table.add_column(heading, justify="left" if heading in ("setting", "method") else "right")
    for row in rows:
        figures = [f"{row[key]:,.2f}" for key in ("published_gb", "predicted_gb", "predicted_gb_as_printed")]
        times = f"{row['improvement']:.2f}x" if row["improvement"] else ""
        error = f"{row['relative_error']:+.3%}"
        table.add_row(row["setting"], row["method"], figures[0], figures[1], error, figures[2], times)
    console().print(table)


if __name__ == "__main__":
    run_command(main)
