"""Speed: python -m loft_jax.bench [--torch] [--json FILE] [--append FILE]

On a CPU each timed row runs two programs in turn, A B A B ..., and gives the median of the ratios A/B of the pairs.
Absolute times depend on the machine and on its other work, ratios much less. FLOPs are those that XLA counts.

On an accelerator it makes another table (--table accelerator makes it on a CPU too): images/s of the full step and of
LoFT-4's step, all local steps of a round as one program; their share of the peak and the time computed from it; and, if
a PyTorch that sees the card is installed, the full step by torch.compile.

With --torch our steps and a round are compared with the same network and steps in PyTorch, on one and on two CPU cores.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from loft_jax.bench.rows import Row, append_row, check_writable, print_row, print_table, write_report
from loft_jax.config import Parser, path_name, run_command, whole_number
from loft_jax.errors import UserError

_OF_ACCELERATORS = ("seconds", "networks", "width", "batches")


@dataclass(frozen=True)
class Table:
    """A table to be measured: its setting and machine, its rows in turn, and how a row and the whole are printed."""

    setting: Row
    machine: Row
    rows: Iterator[Row]
    print_row: Callable[[Row], None] = print_row
    print_all: Callable[[Row, Sequence[Row]], None] = print_table


def main() -> None:
    arguments = make_parser().parse_args()
    arguments.start = time.perf_counter()
    for option in ("json", "append"):
        if (file := getattr(arguments, option)) is not None:
            check_writable(f"--{option}", file)
    table = against_torch(arguments) if arguments.torch else of_this_device(arguments)
    rows = []
    for row in table.rows:
        rows.append(row)
        table.print_row(row)
        if arguments.append is not None:
            append_row(arguments.append, table.machine, row)
    table.print_all(table.machine, rows)
    if arguments.json is not None:
        write_report(arguments.json, table.setting, table.machine, rows)


def make_parser() -> Parser:
    """Make the parser of the command's options."""
    parser = Parser("python -m loft_jax.bench", __doc__ or "")
    add, number = parser.add_argument, whole_number(1)
    add("--pairs", metavar="N", type=number, default=7, help="pairs A B of a row, or its most repetitions (default: 7)")
    add("--json", metavar="FILE", type=path_name, help="write the table into this file at the end")
    add(
        "--append",
        metavar="FILE",
        type=path_name,
        help="append each row to this file when it is measured, as a line of JSON",
    )
    add("--torch", action="store_true", help="compare with PyTorch on CPU cores (pip install 'loft_jax[torch]')")
    add("--only", metavar="TEXT", help="with --torch: only the rows whose name contains this")
    add("--table", choices=("auto", "parts", "accelerator"), default="auto", help="which table (default: the device's)")
    accelerator = parser.add_argument_group("options of the accelerator's table").add_argument
    accelerator("--seconds", metavar="N", type=number, help="leave out rows that would not end within this time")
    accelerator("--networks", metavar="NAME", nargs="+", choices=NETWORKS, help="default: preresnet18 preresnet34")
    accelerator("--width", metavar="N", type=number, help="channels of the first stage (default: the published width)")
    accelerator("--batches", metavar="N", nargs="+", type=number, help="images of a step (default: 512 128)")
    return parser


NETWORKS = ("preresnet18", "preresnet20", "preresnet34")


def against_torch(arguments: argparse.Namespace) -> Table:
    """Prepare the comparison with PyTorch on CPU cores. Raises UserError."""
    from loft_jax.bench.against_torch import cases, check_torch, compare, versions

    if arguments.table != "auto":
        raise UserError(f"--table {arguments.table}: --torch makes a table of its own; leave one of them out")
    refuse(arguments, _OF_ACCELERATORS, "belongs to the accelerator's table; leave it out, or --torch")
    check_torch()
    chosen = [case for case in cases() if (arguments.only or "") in str(case)]
    if not chosen:
        names = "".join(f"\n  {case}" for case in cases())
        raise UserError(f"--only {arguments.only}: no row has this in its name; the rows are:{names}")
    setting = {"cases": [str(case) for case in chosen], "config": chosen[0].config.model_dump()}
    return Table(setting, versions(), (row for case in chosen for row in compare(case, arguments.pairs)))


def of_this_device(arguments: argparse.Namespace) -> Table:
    """Prepare the table of the device: a round and its parts on a CPU, speeds on an accelerator. Raises UserError."""
    refuse(arguments, ("only",), "chooses rows of --torch; leave it out, or add --torch")
    if find_spec("torch") is not None:
        # PyTorch's rows on a card need some of its memory, of which JAX otherwise takes three quarters at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    from loft_jax.bench.parts import CONFIG, all_rows
    from loft_jax.devices import configure_jax

    configure_jax(CONFIG)
    import jax

    on_cpu = jax.devices()[0].platform == "cpu"
    if arguments.table == "accelerator" or (arguments.table == "auto" and not on_cpu):
        return of_accelerator(arguments)
    refuse(arguments, _OF_ACCELERATORS, "belongs to the accelerator's table; leave it out, or add --table accelerator")
    return Table(CONFIG.model_dump(), machine(), all_rows(arguments.pairs))


def of_accelerator(arguments: argparse.Namespace) -> Table:
    """Prepare the accelerator's table. Raises UserError."""
    from loft_jax.bench import accelerator

    settings = accelerator.in_order_of_worth(
        arguments.networks or ("preresnet18", "preresnet34"),
        arguments.width,
        arguments.batches or (512, 128),
        workers=4,
        torch=find_spec("torch") is not None,
    )
    check_widths(settings)
    bench = accelerator.AcceleratorBench(arguments.pairs)
    return Table(
        {"settings": [str(setting) for setting in settings], "config": settings[0].config.model_dump()},
        machine(),
        accelerator.measure_in_time(settings, bench.measure, arguments.seconds, arguments.start),
        accelerator.print_accelerator_row,
        accelerator.print_accelerator_table,
    )


def check_widths(settings: Sequence[Any]) -> None:
    """Raise UserError if LoFT's workers do not divide the widths of a network."""
    from loft_jax.loft import split_groups
    from loft_jax.models import make_model

    for setting in settings:
        try:
            split_groups(make_model(setting.config, 10, (32, 32, 3)), setting.config)
        except ValueError as error:
            raise UserError(f"--width {setting.width}: {error}") from None


def refuse(arguments: argparse.Namespace, options: Sequence[str], why: str) -> None:
    """Raise UserError if one of these options is given."""
    for option in options:
        if (value := getattr(arguments, option)) is not None:
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"--{option} {text}: {why}")


def machine() -> Row:
    """Describe the machine that the figures are measured on."""
    import jax

    device = jax.devices()[0]
    return {
        "devices": f"{jax.device_count()} {device.device_kind}",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "platform": " ".join(device.client.platform_version.split()),
    }


if __name__ == "__main__":
    run_command(main)
