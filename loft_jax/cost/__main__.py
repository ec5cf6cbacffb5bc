"""What pretraining costs: python -m loft_jax.cost --config C, or --paper

--config C   a setting, with its own number of workers and with 1, 2, 4, 8: parameters, FLOPs, bytes and peak memory of
             LoFT (bytes as the paper counts them, and as this program's two syncs move them), local SGD, data-parallel
             SGD and GPipe. Bytes are given twice: predicted from the model's declaration, and read from the compiled
             programs. The settings decide what is compared: loft.partition, gpipe.cuts, gpipe.microbatches,
             train.rounds, ...; a worker is one device (mesh.data is ignored)
--paper      the paper's table of communication: the printed figures, and those predicted from the models
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from typing import Any

from loft_jax.config import CommandLine, Config, apply_overrides, read_config, run_command, whole_number
from loft_jax.console import duration
from loft_jax.errors import UserError

# Modules that import JAX are imported where they are needed: a typo is reported before JAX is loaded.

Row = dict[str, Any]
WORKERS = (1, 2, 4, 8)


def main() -> None:
    command = CommandLine("python -m loft_jax.cost", __doc__)
    add = command.parser.add_argument
    add("--paper", action="store_true", help="print the paper's table instead of the costs of a setting")
    add("--format", choices=("table", "csv"), default="table", help="output format (default: table)")
    add(
        "--workers",
        type=whole_number(1, 4096),
        nargs="+",
        metavar="S",
        help="numbers of workers (default: 1 2 4 8, and the setting's own)",
    )
    add("--no_compile", action="store_true", help="compile nothing: prints no memory and no bytes of compiled programs")
    options, overrides = command.parse_overrides()
    check_options(options, overrides)
    if options.paper:
        from loft_jax.cost.prediction import COLUMNS, communication_table
        from loft_jax.cost.tables import print_paper

        rows = communication_table()
        print_csv(COLUMNS, rows) if options.format == "csv" else print_paper(rows)
        return
    config = apply_overrides(read_config(options.config), overrides, source=options.config)
    numbers = options.workers or (*WORKERS, config.loft.workers, config.gpipe.stages or 1)
    costs, notes = compute_costs(config, numbers, compiles=not options.no_compile)
    from loft_jax.cost.tables import as_rows, print_setting

    rows = as_rows(costs)
    print_csv(list(rows[0]), rows) if options.format == "csv" else print_setting(rows)
    for note in notes:
        print(f"note      {note}", file=sys.stderr)


def check_options(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Raise UserError if the options are wrong by themselves."""
    if options.paper and (options.config is not None or overrides or options.workers or options.no_compile):
        raise UserError("--paper has settings of its own; leave out all others except --format, or leave out --paper")
    if not options.paper and options.config is None:
        raise UserError("give --config FILE for what a setting costs, or --paper for the paper's table; see --help")


def compute_costs(config: Config, numbers: Sequence[int], *, compiles: bool) -> tuple[list[Any], list[str]]:
    """Compute the costs of every method that the model and the devices allow, with progress on stderr.

    Returns:
      A list of `methods.Cost`, and a note for each method that is missing or not compiled.
    """
    from loft_jax.cost.methods import Costs
    from loft_jax.data import dataset_facts
    from loft_jax.devices import configure_jax

    mesh = config.mesh.model_copy(update={"cpu_devices": max(*numbers, config.mesh.cpu_devices)})
    configure_jax(config.model_copy(update={"mesh": mesh}))
    costs = Costs(config, dataset_facts(config), compiles=compiles)
    # Plain SGD always, because the others are compared with it.
    methods = [method for number in sorted({1, *numbers}) for method in costs.methods(number)]
    found, notes, start = [], [], time.perf_counter()
    for done, (name, rows) in enumerate(methods):
        left = (time.perf_counter() - start) / done * (len(methods) - done) if done else 0.0
        if compiles:
            ending = f", {duration(left)} left" if done else ""
            print(f"compiling {done + 1}/{len(methods)}: {name}{ending}", file=sys.stderr, flush=True)
        try:
            found += rows()
        except UserError as reason:
            notes.append(f"{name} is missing: {reason}")
    if not found:
        raise UserError("\n       ".join(notes))
    return found, notes + costs.notes


def print_csv(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print the rows as CSV; None is an empty cell."""
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    run_command(main, signs="stderr")
