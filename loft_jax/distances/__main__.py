"""Compare filters of any checkpoints: python -m loft_jax.distances CHECKPOINT [CHECKPOINT ...] --out DIR

Ranks the filters of every layer of checkpoints that need not be of loft_jax, in the order in which they are given, and
measures how far each ranking is from that of the last one, and from the one before. Layers are matched by name and
shape; what does not match is said, and left out. One checkpoint alone has rankings and tickets, but no distances.

A checkpoint is a file of weights, .safetensors, .npz, .msgpack (Flax), .pt or .pth (PyTorch, read without running what
is in it), or a directory that Orbax has written. Writes into DIR, and replaces an earlier comparison there:
  report.html      heat maps and curves, in one file that needs no network; figures/ and tables/ have them as files
  rankings.npz     the rank of every filter in every checkpoint (1 = largest norm)
  distances.csv    distances of every layer and checkpoint, raw and divided by chance
  overlaps.npz     intersection over union of the filters that two checkpoints keep, at each ratio
  tickets/NAME/    a ticket of each checkpoint at each ratio: which filters stay; r0 is the first checkpoint
  search.json      the options of the comparison
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.progress import track

from loft_jax.config import Parser, path_name, run_command
from loft_jax.console import console, make_table, megabytes, shows_bars
from loft_jax.errors import UserError, did_you_mean, format_value, path_problem
from loft_jax.files import ensure_writable
from loft_jax.filters import NORMS, SCOPES
from loft_jax.storage import CONFIG
from loft_jax.tickets import add_ticket_options, ratio, ratio_text, rules_of

if TYPE_CHECKING:
    from loft_jax.distances.checkpoints import Checkpoints
    from loft_jax.tickets import TicketSearch

# Modules that import JAX are imported where they are needed: a typo is reported before that.

# Scores of a kernel alone; which norm's scale goes with a kernel is not known of a checkpoint.
_NORMS = ("l2", "l1", "fpgm")
_MOST_UNMATCHED = 20


def main(argv: list[str] | None = None) -> None:
    parser = Parser("python -m loft_jax.distances", __doc__ or "")
    add_options(parser)
    options = parser.parse_args(argv)
    paths = check_paths(options.checkpoint)
    reference = check_reference(options.reference, options.checkpoint)
    if options.norm not in (None, *_NORMS):
        raise UserError(f"--norm {options.norm}: is not known of a checkpoint alone; use one of {', '.join(_NORMS)}")
    run(paths, reference, check_out(options.out), options)


def add_options(parser: Parser) -> None:
    """Add the command's options to its parser."""
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CHECKPOINT",
        type=path_name,
        nargs="+",
        help="files of weights, or directories of Orbax, in order",
    )
    add("--out", metavar="DIR", type=path_name, required=True, help="directory of the results")
    add("--layout", choices=("torch", "flax"), help="torch: kernels are [out, in, height, width]; flax: [height,\n"
        "width, in, out] (default: told by their shapes, and otherwise by their names)")  # fmt: skip
    add("--reference", metavar="CHECKPOINT", type=path_name, help="one of the checkpoints, from which distances are\n"
        "measured (default: the last)")  # fmt: skip
    add("--ratios", type=ratio, nargs="+", default=[0.8, 0.5, 0.3],
        help="shares of the filters removed (default: 0.8 0.5 0.3)")  # fmt: skip
    add_ticket_options(parser)


def check_paths(texts: list[str]) -> list[Path]:
    """Return the checkpoints. Raises UserError if one cannot exist, does not, or is named twice."""
    paths: dict[Path, str] = {}
    for text in texts:
        if problem := path_problem(text):
            raise UserError(f"{format_value(text)}: {problem}; give a file of weights")
        if (resolved := Path(text).resolve()) in paths:
            raise UserError(f"{format_value(text)}: is the same as {format_value(paths[resolved])}; name it once")
        paths[resolved] = text
        if not Path(text).exists():
            siblings = list(map(str, Path(text).parent.glob("*"))) if Path(text).parent.is_dir() else []
            raise UserError(f"{format_value(text)}: no such file{did_you_mean(text, siblings)}")
    return [Path(text) for text in texts]


def check_reference(text: str | None, checkpoints: list[str]) -> int:
    """Return the number of the reference. Raises UserError unless it is one of the checkpoints."""
    if text is None:
        return len(checkpoints) - 1
    if text not in checkpoints:
        near = did_you_mean(text, checkpoints, f"there are {', '.join(checkpoints[:12])}")
        raise UserError(f"--reference {format_value(text)}: is not one of the checkpoints{near}")
    return checkpoints.index(text)


def check_out(text: str) -> Path:
    """Return the directory of the results, made if needed. Raises UserError if nothing can be written there."""
    if problem := path_problem(text):
        raise UserError(f"--out {format_value(text)}: {problem}; use the name of a directory")
    out = Path(text)
    if (out / CONFIG).exists():
        raise UserError(f"--out {text}: holds a run, whose search would be replaced; use another directory")
    ensure_writable(out, "--out")
    return out


def run(paths: list[Path], reference: int, out: Path, options: argparse.Namespace) -> None:
    """Compare the checkpoints, write everything and print what was found."""
    import jax

    from loft_jax.arithmetic import fix_arithmetic

    # A comparison needs no accelerator.
    jax.config.update("jax_platforms", "cpu")
    fix_arithmetic()
    from loft_jax.distances.checkpoints import Checkpoints
    from loft_jax.distances.results import compare, write_page

    tracked = partial(track, description="checkpoints", disable=not shows_bars())
    scope, norm = options.scope or SCOPES[0], options.norm or NORMS[0]
    checkpoints = Checkpoints(paths, norm, out, options.layout, tracked)
    found = compare(checkpoints, reference, options.ratios, scope, rules_of(options))
    found.write(checkpoints.directory, checkpoints.rounds)
    figures, size = write_page(checkpoints, found)
    print_results(checkpoints, found)
    print(f"tickets   {out / 'tickets'}: one for each ratio and each of {len(paths)} checkpoints")
    print(f"report    {out / 'report.html'}: {figures} figures, {megabytes(size)}")


def print_results(checkpoints: "Checkpoints", found: "TicketSearch") -> None:
    """Print what was read, what does not match, and a line for each checkpoint."""
    layouts = ", ".join(dict.fromkeys(checkpoints.layouts))
    filters = sum(group.width for group in checkpoints.groups)
    print(f"layers    {len(checkpoints.groups)} with {filters:,} filters; layout of the kernels: {layouts}")
    for line in checkpoints.unmatched[:_MOST_UNMATCHED]:
        print(f"left out  {line}")
    if (more := len(checkpoints.unmatched) - _MOST_UNMATCHED) > 0:
        print(f"left out  {more} more layers; report.html has all of them")
    if len(checkpoints.rounds) == 1:
        return
    title = f"filter distance, mean (worst) over layers; 1 is chance; reference: {_reference_name(checkpoints, found)}"
    shares = [ratio_text(share) for share in found.options["ratios"]]
    headings = ["from the reference", "from the one before", *(f"overlap with the last, {share}" for share in shares)]
    table = make_table(title, "checkpoint", *headings)
    for t, name in enumerate(checkpoints.names):
        rows = [row for row in found.rows if row["round"] == t]
        distances = [_mean_and_worst(rows, f"to_{which}_normalised") for which in ("reference", "previous")]
        table.add_row(name, *distances, *(f"{found.overlaps[f'{share}/all'][t, -1]:.2f}" for share in shares))
    console().print(table)


def _reference_name(checkpoints: "Checkpoints", found: "TicketSearch") -> str:
    return checkpoints.names[found.options["reference_round"]]


def _mean_and_worst(rows: list[dict], column: str) -> str:
    values = [row[column] for row in rows if row[column] is not None]
    return f"{fmean(values):.3f} ({max(values):.3f})" if values else ""


if __name__ == "__main__":
    run_command(main)
