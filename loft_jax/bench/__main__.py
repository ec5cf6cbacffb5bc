"""Speed, as ratios in one run: python -m loft_jax.bench [--torch] [--json FILE]

Each timed row runs two programs in turn, A B A B ..., and gives the median of the ratios A/B of the pairs. Absolute
times depend on the machine and on its other work, ratios much less. FLOPs are those that XLA counts.

With --torch our steps and a round are compared with the same network and steps in PyTorch, on one and on two CPU cores.
"""

import argparse
from collections.abc import Iterator

from loft_jax.bench.rows import Row, check_writable, print_row, print_table, write_report
from loft_jax.config import Parser, run_command, whole_number
from loft_jax.errors import UserError


def main() -> None:
    parser = Parser("python -m loft_jax.bench", __doc__)
    parser.add_argument("--pairs", type=whole_number(1), default=7, help="pairs A B of each row (default: 7)")
    parser.add_argument("--json", metavar="FILE", help="also write the table into this file")
    parser.add_argument("--torch", action="store_true", help="compare with PyTorch (pip install 'loft_jax[torch]')")
    parser.add_argument("--only", metavar="TEXT", help="with --torch: only the rows whose name contains this")
    arguments = parser.parse_args()
    if arguments.json is not None:
        check_writable(arguments.json)
    setting, machine, measured = against_torch(arguments) if arguments.torch else our_parts(arguments)
    rows = []
    for row in measured:
        rows.append(row)
        print_row(row)
    print_table(machine, rows)
    if arguments.json is not None:
        write_report(arguments.json, setting, machine, rows)


def our_parts(arguments: argparse.Namespace) -> tuple[Row, Row, Iterator[Row]]:
    """Prepare the comparison of a round with its parts. Returns the setting, the machine, and the rows."""
    if arguments.only is not None:
        raise UserError(f"--only {arguments.only}: chooses rows of --torch; leave it out, or add --torch")
    from loft_jax.bench.parts import CONFIG, all_rows
    from loft_jax.devices import configure_jax

    configure_jax(CONFIG)
    return CONFIG.model_dump(), machine(), all_rows(arguments.pairs)


def against_torch(arguments: argparse.Namespace) -> tuple[Row, Row, Iterator[Row]]:
    """Prepare the comparison with PyTorch. Returns the setting, the machine, and the rows. Raises UserError."""
    from loft_jax.bench.against_torch import cases, check_torch, compare, versions

    check_torch()
    chosen = [case for case in cases() if (arguments.only or "") in str(case)]
    if not chosen:
        raise UserError(
            f"--only {arguments.only}: no row has this in its name; the rows are:\n  " + "\n  ".join(map(str, cases()))
        )
    setting = {"cases": [str(case) for case in chosen], "config": chosen[0].config.model_dump()}
    return setting, versions(), (row for case in chosen for row in compare(case, arguments.pairs))


def machine() -> Row:
    """Describe the machine that the figures were measured on."""
    import os

    import jax

    return {
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    run_command(main)
