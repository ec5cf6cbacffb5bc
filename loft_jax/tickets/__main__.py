"""Search tickets in a run's snapshots: python -m loft_jax.tickets RUN

Writes into RUN, and replaces an earlier search there (tickets with other names stay):
  rankings.npz     the rank of every filter in every snapshot (1 = largest norm)
  distances.csv    how far each snapshot's ranking is from the reference's, and from the previous snapshot's
  overlaps.npz     intersection over union of the filters that two snapshots keep, for all pairs, at each ratio
  tickets/NAME/    a ticket of each snapshot at each ratio, NAME = r{round}-{scope}-{norm}-{ratio}, and
                   what the options about single groups and numbers of filters add: r40-group-l2-0.5-by8
  search.json      the options of the search
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.progress import track

from loft_jax.config import CommandLine, Config, Parser, path_name, run_command, whole_number
from loft_jax.console import console, make_table, megabytes, shows_bars
from loft_jax.filters import NORMS, SCOPES, Rules
from loft_jax.storage import RunDirectory
from loft_jax.tickets.options import add_ticket_options, check_saved, ratio, rules_of
from loft_jax.tickets.ticket import ratio_text

if TYPE_CHECKING:
    from loft_jax.tickets.search import TicketSearch

# Modules that import JAX are imported where they are needed: a typo or a wrong directory is reported before that.

_MOST_LINES = 12


def main(argv: list[str] | None = None) -> None:
    command = CommandLine("python -m loft_jax.tickets", __doc__, reads_run="one")
    add_options(command.parser)
    options, overrides = command.parse_overrides(argv)
    directory = RunDirectory(options.run)
    config = directory.config_with(overrides)
    check_saved("--rounds", options.rounds or [], directory.snapshot_rounds())
    rules = rules_of(options)
    from loft_jax.devices import configure_jax

    configure_jax(config)
    run(directory, options, config, rules)


def add_options(parser: Parser) -> None:
    """Add the command's own options to its parser."""
    add = parser.add_argument
    ratios = [0.8, 0.5, 0.3]
    add("--ratios", type=ratio, nargs="+", default=ratios, help="shares of the filters removed (default: 0.8 0.5 0.3)")
    add_ticket_options(parser)
    add("--reference", metavar="RUN2[@ROUND]", type=path_name, help="run with the same initialisation, from which\n"
        "distances are measured (default: RUN's own last snapshot)")  # fmt: skip
    add("--force", action="store_true", help="accept a reference with another initialisation, although its\n"
        "distances mean nothing")  # fmt: skip
    add("--rounds", metavar="ROUND", type=whole_number(0), nargs="+",
        help="write the tickets of these snapshots only (default: all)")  # fmt: skip
    add("--export", action="store_true", help="also write the compact weights of the tickets of --rounds, or of the\n"
        "last snapshot, and their networks as programs for jax.export:\nweights.safetensors and network.jax_export "
        "beside each ticket.json")  # fmt: skip


def run(directory: RunDirectory, options: argparse.Namespace, config: Config, rules: Rules) -> None:
    """Search, write and print the results. Nothing is written before everything is computed."""
    from loft_jax.tickets.export import export_network, export_weights
    from loft_jax.tickets.search import Reference, TicketSearch
    from loft_jax.tickets.snapshots import Snapshots, load_own_data

    snapshots = Snapshots(directory, partial(load_own_data, directory, config.data))
    reference = Reference.parse(options.reference, snapshots, force=options.force)
    if reference.meaningless:
        print(f"warning: {reference.meaningless}", file=sys.stderr)
    if directory.summary() is None:
        print(f"note      the run has not finished; its last snapshot so far is that of round {snapshots.rounds[-1]}")
    tracked = partial(track, description="snapshots", disable=not shows_bars())
    scope, norm = options.scope or SCOPES[0], options.norm or NORMS[0]
    found = TicketSearch.compute(snapshots, reference, options.ratios, scope, norm, tracked, rules)
    rounds = sorted(set(options.rounds or snapshots.rounds))
    found.write(directory, rounds)
    print_search(found)
    print(f"tickets   {directory.tickets}: one for each ratio and each of {len(rounds)} snapshots")
    if options.export:
        exported = [t for (r, _), t in found.tickets.items() if r in (options.rounds or snapshots.rounds[-1:])]
        size = sum(export_weights(snapshots, ticket) for ticket in exported)
        if snapshots.knows_data:
            size += sum(export_network(snapshots, ticket) for ticket in exported)
        else:
            print("note      the run's data.json is missing, so no network is exported; train it once more")
        print(f"exported  {', '.join(ticket.name for ticket in exported)}: {megabytes(size)}")


def print_search(found: "TicketSearch") -> None:
    """Print a line for each snapshot of a search, or for about a dozen of them."""
    options = found.options
    where = "this run" if options["reference"] == "." else options["reference"]
    reference = f"{where}, round {options['reference_round']}"
    title = f"filter distance, mean (worst) over groups; 1 is chance; reference: {reference}"
    shares = [ratio_text(share) for share in options["ratios"]]
    headings = ("round", "epoch", "from the reference", "from the previous snapshot", "train loss", "accuracy")
    table = make_table(title, *headings, *(f"overlap with the last ticket, {share}" for share in shares), left=0)
    last = len(found.rounds) - 1
    for t in sorted({*range(0, last, -(-last // (_MOST_LINES - 1)) or 1), last}):
        round_rows = [row for row in found.rows if row["round"] == found.rounds[t]]
        facts = [("epoch", ".2f"), ("train_loss", ".4f"), ("test_accuracy", ".2%")]
        epoch, loss, accuracy = (_format_number(round_rows[0][key], form) for key, form in facts)
        overlaps = [f"{found.overlaps[f'{share}/all'][t, last]:.2f}" for share in shares]
        distances = [_format_distances(round_rows, f"to_{which}_normalised") for which in ("reference", "previous")]
        table.add_row(str(found.rounds[t]), epoch, *distances, loss, accuracy, *overlaps)
    console().print(table)
    start = [row for row in found.rows if row["round"] == 0]
    caution = ". A run's distance from its own end falls to 0 by construction" if found.own_end else ""
    baseline = _format_distances(start, "to_reference_normalised")
    print(f"baseline  {baseline}: the initialisation's ranking; 1.000: chance{caution}")


def _format_distances(rows: Iterable[Mapping[str, Any]], column: str) -> str:
    """Format the mean and the largest value of a column."""
    values = [row[column] for row in rows if row[column] is not None]
    return f"{fmean(values):.3f} ({max(values):.3f})" if values else ""


def _format_number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    run_command(main)
