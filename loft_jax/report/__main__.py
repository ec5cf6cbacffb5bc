"""Figures and tables of runs: python -m loft_jax.report RUN [RUN ...] --out DIR

Reads the files of the runs (of train, tickets, retrain, lottery, and RUN/cost.csv of loft_jax.cost --format csv). It
trains nothing and changes nothing in a run, so it can be used during a run. Writes into DIR, and replaces an earlier
report:
  report.html      everything, in one file that needs no network
  figures/         each figure as PNG and SVG
  tables/          each table as CSV and Markdown
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from loft_jax.config import CommandLine, Config, path_name, run_command
from loft_jax.console import megabytes
from loft_jax.errors import UserError, format_value, path_problem
from loft_jax.files import directory_aside, ensure_writable, stop_on_write_error
from loft_jax.lottery import is_lottery
from loft_jax.storage import RunDirectory

# Modules that import JAX, NumPy or matplotlib are imported where they are needed: a typo is reported before that.

REPORT, FIGURES, TABLES = "report.html", "figures", "tables"
_ASIDE = "report"
# There while a report is put in the place of another one: what a killed process leaves is then known as its own half.
HALF = ".report.half"


def main(argv: list[str] | None = None) -> None:
    command = CommandLine("python -m loft_jax.report", __doc__, reads_run="several")
    command.parser.add_argument("--out", metavar="DIR", type=path_name, required=True, help="directory of the report")
    options, overrides = command.parse_overrides(argv)
    directories = open_runs(options.run)
    configs = [directory.config_with(overrides) for directory in directories]
    out = open_out(options.out)
    run(directories, configs, out)


def open_runs(paths: Sequence[str]) -> list[RunDirectory]:
    """Open the runs' directories. Raises UserError if one is named twice."""
    directories: dict[Path, RunDirectory] = {}
    for path in paths:
        directory = RunDirectory(path)
        if before := directories.get(directory.path.resolve()):
            raise UserError(f"{format_value(path)}: is the same run as {format_value(str(before.path))}; name it once")
        directories[directory.path.resolve()] = directory
    return list(directories.values())


def open_out(path: str) -> Path:
    """Return the report's directory, made if needed. Raises UserError if no report can be written there."""
    if problem := path_problem(path):
        raise UserError(f"--out {format_value(path)}: {problem}; use the name of a directory")
    out = Path(path)
    for name in (FIGURES, TABLES):
        if (out / name).exists() and not ((out / REPORT).exists() or (out / HALF).exists()):
            raise UserError(
                f"--out {path}: holds {name} but no {REPORT}; use another directory, because {name} would be replaced"
            )
    ensure_writable(out, "--out")
    return out


def run(directories: Sequence[RunDirectory], configs: Sequence[Config], out: Path) -> None:
    """Read the runs, draw and write the report, and print what was written and what is missing."""
    import jax

    from loft_jax.arithmetic import fix_arithmetic

    # A report needs no accelerator, and runs may be using those of this machine.
    jax.config.update("jax_platforms", "cpu")
    fix_arithmetic()
    from loft_jax.report.commands import commands_part
    from loft_jax.report.levels import LotteryFiles
    from loft_jax.report.page import render
    from loft_jax.report.parts import parts_of, write_tables
    from loft_jax.report.run_files import RunFiles

    of_lotteries = [is_lottery(directory.path) for directory in directories]
    both = list(zip(directories, configs, of_lotteries, strict=True))
    runs = [RunFiles.read(directory, config) for directory, config, lottery in both if not lottery]
    lotteries = [LotteryFiles.read(directory, config) for directory, config, lottery in both if lottery]
    with stop_on_write_error(out / REPORT), directory_aside(out, _ASIDE) as aside:
        for name in (FIGURES, TABLES):
            (aside / name).mkdir()
        parts = parts_of(runs, lotteries, aside / FIGURES)
        inputs = [directory.path for directory in directories]
        pruned = [path for path, lottery in zip(inputs, of_lotteries, strict=True) if lottery]
        parts.append(commands_part(runs, pruned, inputs, out))
        write_tables(parts, aside / TABLES)
        title = "LoFT: report of " + (f"{len(both)} runs" if len(both) > 1 else "a run")
        page = render(title, parts).encode()
        (aside / REPORT).write_bytes(page)
        _replace(out, aside)
    for part in parts:
        for message in part.messages:
            print(f"result    {message}")
        for name, lines in part.missing:
            for line in lines:
                print(f"missing   {name}: {line}")
    figures, tables = (sum(len(getattr(part, what)) for part in parts) for what in ("pictures", "tables"))
    print(f"report    {out / REPORT}: {figures} figures, {tables} tables, {megabytes(len(page))}")


def _replace(out: Path, aside: Path) -> None:
    (out / HALF).touch()
    for name in (FIGURES, TABLES):
        shutil.rmtree(out / name, ignore_errors=True)
        os.replace(aside / name, out / name)
    os.replace(aside / REPORT, out / REPORT)
    (out / HALF).unlink()


if __name__ == "__main__":
    run_command(main)
