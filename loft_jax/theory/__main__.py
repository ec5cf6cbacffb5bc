"""Theorem 1 by experiment: python -m loft_jax.theory --config configs/theory.yaml --out runs/theory

The theorem bounds the distance between the trajectories of LoFT and of gradient descent, for a network with one hidden
convolutional layer. Both are run from the same start, in float64, for several numbers of filters, workers and rounds,
densities of the masks, and steps. Writes results.csv (a row for each point), summary.json (the slopes) and figures.
"""

import json
import os
from pathlib import Path

import yaml

from loft_jax.config import CommandLine, path_name, run_command
from loft_jax.errors import UserError, format_value, path_problem
from loft_jax.files import ensure_writable, write_atomically, write_table
from loft_jax.storage import CONFIG, RESULTS, SUMMARY
from loft_jax.theory.config import TheoryConfig

# Modules that import JAX are imported where they are needed: a typo is reported before that.


def main() -> None:
    command = CommandLine("python -m loft_jax.theory", __doc__, TheoryConfig)
    command.parser.add_argument(
        "--out",
        metavar="DIR",
        type=path_name,
        default="runs/theory",
        help="directory of the results (default: %(default)s)",
    )
    arguments, config = command.parse()
    check_fits(config, machine_bytes())
    run(config, results_directory(arguments.out))


def check_fits(config: TheoryConfig, available: int) -> None:
    """Raise UserError if the largest network of the sweep needs more than the available bytes."""
    theory, most = config.theory, config.theory.most_filters
    fixed, per_filter = theory.bytes_needed
    needed = fixed + most * per_filter
    if needed <= available:
        return
    swept = [key for key in ("filters", "sweep_filters", "sweep_disjoint") if str(most) in str(getattr(theory, key))]
    fitting = (available - fixed) // per_filter
    change = f"try at most {fitting} filters, or lower theory.rounds" if fitting > 0 else "lower theory.samples"
    raise UserError(
        f"theory.{swept[0]}={getattr(theory, swept[0])}: {most} filters with theory.samples={theory.samples}, "
        f"theory.pixels={theory.pixels} and theory.rounds={theory.rounds} need {needed / 1e9:,.1f} GB of memory, and "
        f"must fit in the {available / 1e9:,.1f} GB of this machine; {change}"
    )


def machine_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def results_directory(name: str) -> Path:
    """Return the results' directory, made if needed. Results of an earlier experiment in it are replaced.

    Raises:
      UserError: it cannot be written, or it holds something else.
    """
    if problem := path_problem(name):
        raise UserError(f"--out {format_value(name)}: {problem}; use the name of a directory")
    path = Path(name)
    ensure_writable(path, "--out")
    held = {entry.name for entry in path.iterdir()}
    if held and RESULTS not in held:
        raise UserError(
            f"--out {format_value(name)}: is not empty and holds no {RESULTS} of an experiment; use another"
        )
    return path


def run(config: TheoryConfig, directory: Path) -> None:
    """Run the experiment, and write and print the results. Raises UserError for steps that diverge."""
    from loft_jax.arithmetic import fix_arithmetic
    from loft_jax.devices import keep_compiled_programs
    from loft_jax.theory.figures import draw_figures
    from loft_jax.theory.rows import COLUMNS, result_rows, result_summary
    from loft_jax.theory.sweep import TheoremSweep
    from loft_jax.theory.tables import SweepProgress, print_inputs, print_results

    fix_arithmetic()
    keep_compiled_programs()
    sweep = TheoremSweep(config)
    print_inputs(sweep)
    with SweepProgress(sweep) as progress:
        sweep.run(progress.update)
    rows, summary = result_rows(sweep), result_summary(sweep)
    write_table(directory / RESULTS, COLUMNS, rows)
    write_atomically(directory / CONFIG, yaml.safe_dump(config.model_dump(), sort_keys=False))
    write_atomically(directory / SUMMARY, json.dumps(summary, indent=2) + "\n")
    for name, content in draw_figures(rows).items():
        write_atomically(directory / name, content)
    print_results(rows, summary)
    print(f"written   {directory}: {RESULTS}, {SUMMARY}, {CONFIG}, figures", flush=True)


if __name__ == "__main__":
    run_command(main)
