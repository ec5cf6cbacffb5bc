"""Search tickets in a run's snapshots: python -m loft_jax.tickets RUN

Writes into RUN, replacing what an earlier search wrote:
  rankings.npz     the rank of every filter in every snapshot (1 = largest norm)
  distances.csv    how far each snapshot's ranking is from the reference's, and from the snapshot before
  overlaps.npz     intersection over union of the kept filters, between all snapshots, at each ratio
  tickets/NAME/    a ticket of each snapshot at each ratio, NAME = r{round}-{scope}-{norm}-{ratio}
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from rich.progress import track
from rich.table import Table

from loft_jax.cli import CommandLine, overridden, ratio, run_command, whole_number
from loft_jax.config import Config, flatten
from loft_jax.errors import UserError
from loft_jax.progress import console
from loft_jax.run_directory import RunDirectory
from loft_jax.ticket import NORMS, SCOPES

if TYPE_CHECKING:
    from loft_jax.ticket_search import TicketSearch

# What imports JAX is imported where it is needed: a typo or a wrong directory is told before JAX is loaded.

_MOST_LINES = 12


def main() -> None:
    command = CommandLine("python -m loft_jax.tickets", __doc__, reads_run=True)
    add_ticket_options(command.parser)
    for name, settings in {
        "--ratios": {
            "type": ratio,
            "nargs": "+",
            "default": [0.8, 0.5, 0.3],
            "help": "shares of the filters removed (default: 0.8 0.5 0.3)",
        },
        "--reference": {
            "metavar": "RUN2[@ROUND]",
            "help": "run of the same initialisation that distances are taken from (default: RUN's last snapshot)",
        },
        "--force": {"action": "store_true", "help": "take a reference of another initialisation, meaningless as it is"},
        "--rounds": {
            "type": whole_number(0),
            "nargs": "+",
            "metavar": "ROUND",
            "help": "write the tickets of these snapshots only (default: of all)",
        },
        "--export": {
            "action": "store_true",
            "help": "also write the compact weights, as weights.safetensors beside the tickets of --rounds,\n"
            "or of the last snapshot",
        },
    }.items():
        command.parser.add_argument(name, **settings)
    arguments, overrides = command.parse_overrides()
    directory = RunDirectory(arguments.run)
    config = _with_overrides(directory, overrides)
    check_saved("--rounds", arguments.rounds or [], directory.snapshot_rounds())
    from loft_jax.experiment import configure_jax

    configure_jax(config)
    run(directory, arguments)


def add_ticket_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how tickets are drawn."""
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        default="group",
        help="the same ratio in each filter group, or one over all groups, by scores divided by their group's mean "
        "(default: group)",
    )
    parser.add_argument("--norm", choices=NORMS, default="l2", help="of a filter's kernel, its score (default: l2)")


def run(directory: RunDirectory, options: argparse.Namespace) -> None:
    """Search, write, and print what was found. Nothing is written before all of it is computed."""
    from loft_jax.snapshots import Snapshots, check_comparable, rank_groups
    from loft_jax.ticket_search import TicketSearch, export_weights, reference_of

    snapshots = Snapshots(directory)
    other, reference_round = reference_of(options.reference, snapshots)
    if meaningless := check_comparable(snapshots, other, force=options.force):
        print(f"warning: {meaningless}", file=sys.stderr)
    reference = rank_groups(other.scores(reference_round, options.norm))
    tracked = track(snapshots.rounds, "snapshots", disable=not sys.stdout.isatty())
    scores = [snapshots.scores(round_number, options.norm) for round_number in tracked]
    found = TicketSearch.of(snapshots, scores, reference, options.ratios, options.scope, options.norm)
    rounds = options.rounds or snapshots.rounds
    found.write(directory, rounds)
    print_search(found, f"{other.path}, round {reference_round}")
    print(f"tickets   {directory.tickets}: one for each ratio and each of {len(rounds)} snapshots")
    if options.export:
        exported = [t for (r, _), t in found.tickets.items() if r in (options.rounds or snapshots.rounds[-1:])]
        size = sum(export_weights(snapshots, ticket) for ticket in exported)
        print(f"exported  {', '.join(ticket.name for ticket in exported)}: {size / 1e6:,.2f} MB")


def print_search(found: "TicketSearch", reference: str) -> None:
    """A line for each snapshot, or for about a dozen of them."""
    ratios = [key.removesuffix("/all") for key in found.overlaps if key.endswith("/all")]
    table = Table(title=f"filter distance, mean (worst) over groups; 1 is chance; reference: {reference}")
    for heading in ("round", "epoch", "from the reference", "from the snapshot before", "train loss", "accuracy"):
        table.add_column(heading, justify="right")
    for share in ratios:
        table.add_column(f"kept as at the end, {share}", justify="right")
    last = len(found.rounds) - 1
    for t in sorted({*range(0, last, -(-last // (_MOST_LINES - 1)) or 1), last}):
        of_round = [row for row in found.rows if row["round"] == found.rounds[t]]
        facts = [("epoch", ".2f"), ("train_loss", ".4f"), ("test_accuracy", ".2%")]
        epoch, loss, accuracy = (_shown(of_round[0][key], form) for key, form in facts)
        overlaps = [f"{found.overlaps[f'{share}/all'][t, last]:.2f}" for share in ratios]
        distances = [_spread(of_round, f"to_{which}_normalised") for which in ("reference", "previous")]
        table.add_row(str(found.rounds[t]), epoch, *distances, loss, accuracy, *overlaps)
    console().print(table)
    start = [row for row in found.rows if row["round"] == found.rounds[0]]
    print(
        f"baseline  {_spread(start, 'to_reference_normalised')}: the initialisation's ranking; 1.000: chance. "
        "A run's distance from its own end falls to 0 by construction"
    )


def check_saved(option: str, rounds: Sequence[int], saved: Sequence[int]) -> None:
    """Raise UserError unless all rounds are among the saved ones."""
    for round_number in rounds:
        if round_number not in saved:
            raise UserError(f"{option} {round_number}: no such snapshot; there are {', '.join(map(str, saved))}")


def _with_overrides(directory: RunDirectory, overrides: Mapping[str, str]) -> Config:
    config = directory.read_config()
    changed = overridden(config.model_dump(), dict(overrides), source="command line")
    before, now = flatten(config), flatten(changed)
    for key in overrides:
        if now[key] != before[key] and key not in config.resumable():
            raise UserError(f"--{key} {now[key]}: the run was made with {before[key]}, and is searched as it is")
    return changed


def _spread(rows: Sequence[Mapping], column: str) -> str:
    values = [row[column] for row in rows if row[column] is not None]
    return f"{fmean(values):.3f} ({max(values):.3f})" if values else ""


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    run_command(main)
