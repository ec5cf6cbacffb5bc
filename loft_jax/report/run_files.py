"""The contents of one run's files, for a report, with a line for everything that is missing.

Only reads, so it can be used during the run. Imports neither JAX nor a plotting library.
"""

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.config import Config
from loft_jax.errors import UserError, format_value, offer
from loft_jax.filters import NORMS, SCOPES
from loft_jax.retrain import collect_results
from loft_jax.storage import CONFIG, COSTS, METRICS, TICKET, RunDirectory, UnsoundError, describe_rounds, missing_rounds
from loft_jax.tickets import Pruning, SearchFiles, Ticket, read_ticket, ticket_name

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The files of one run. What could not be read is empty, and has a line in `missing`.

    Attributes:
      rows: rows of metrics.jsonl.
      summary: summary of a finished run; otherwise None.
      search: the last ticket search; None if there is none.
      retrained: a row for each ticket and mode, as in results.csv.
      costs: rows of RUN/cost.csv, as `loft_jax.cost --format csv` prints them.
      missing: what is missing, and how to get it, a line each.
    """

    directory: RunDirectory
    config: Config
    rows: list[Row]
    summary: Row | None
    search: SearchFiles | None
    retrained: list[Row]
    costs: list[Row]
    missing: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, directory: RunDirectory, config: Config) -> "RunFiles":
        """Read all that can be read of a run, whatever its state."""
        rows, summary, search = directory.rows(), directory.summary(), None
        missing = [f"{problem}; it is left out" for problem in directory.lost_rows()]
        if problem := directory.summary_problem():
            missing.append(f"{problem}; the same train command makes it again")
        missing += _describe_rows(rows, summary, config.train.rounds)
        try:
            search = SearchFiles.read(directory, config.hash())
            if search is None:
                missing.append(f"no tickets have been searched; {offer('tickets', directory.path)}")
        except UnsoundError as error:
            missing.append(
                f"the ticket search cannot be read ({error}); search again: {offer('tickets', directory.path)}"
            )
        if search and rows and search.rounds[-1] < rows[-1]["round"]:
            missing.append(f"the ticket search ends at round {search.rounds[-1]}; search again for later snapshots")
        missing += _unsound_tickets(directory, search, config.hash()) if search else []
        retrained, unfinished, left_out = collect_results(directory)
        if not retrained:
            missing.append(f"no ticket has been retrained; {offer('retrain', directory.path, '--ticket', 'NAME')}")
        if unfinished:
            missing.append(f"{unfinished} retrainings have not finished, and are left out")
        missing += [f"left out: {line}" for line in left_out]
        costs: list[Row] = []
        try:
            costs = read_costs(directory.path / COSTS)
        except UnsoundError as error:
            missing.append(f"{error}; it is left out")
        else:
            missing += [] if costs else [f"no costs have been computed; {cost_command(directory)}"]
        return cls(directory, config, rows, summary, search, retrained, costs, missing)

    @property
    def data_name(self) -> str:
        """Name of the data set: for one that was read from a file, the name that the file gives."""
        return (self.directory.data_identity() or {}).get("name", self.config.data.name)

    @property
    def has_all_rows(self) -> bool:
        """Whether each round so far has its row."""
        return not self.rows or not missing_rounds(self.rows, self.rows[-1]["round"])

    @property
    def epochs(self) -> dict[int, float]:
        """Round -> epoch, from all rows."""
        return {row["round"]: row["epoch"] for row in self.rows if "epoch" in row}

    def kept(self, ratio: float) -> dict[str, np.ndarray]:
        """Group name -> bool [T, n]: filters that the ticket of each snapshot keeps.

        {} if a ticket is missing, or keeps other filters than the ranking has at the top.
        """
        search = self.search
        if search is None:
            return {}
        masks = {name: np.zeros(ranks.shape, bool) for name, ranks in search.rankings.items()}
        for t, round_number in enumerate(search.rounds):
            try:
                kept = _sound_ticket(self.directory, search, int(round_number), ratio, self.config.hash()).kept
                for group, mask in masks.items():
                    mask[t, kept[group]] = True
            except (UserError, KeyError, IndexError):
                return {}
        return masks


def _sound_ticket(directory: RunDirectory, search: SearchFiles, number: int, ratio: float, run_hash: str) -> Ticket:
    """Read a ticket of a search. Raises UserError if it is missing, damaged, of another run, or not of the ranking."""
    pruning = search.pruning(ratio)
    path = directory.tickets / ticket_name(number, pruning.scope, pruning.norm, ratio, pruning.rules)
    ticket = read_ticket(path)
    if ticket.config_hash != run_hash or ticket.name != path.name:
        raise UserError(f"{path / TICKET}: is a ticket of another run, or of another name; search again")
    search.check_agrees(ticket)
    return ticket


def _unsound_tickets(directory: RunDirectory, search: SearchFiles, run_hash: str) -> list[str]:
    """Say why a ticket of the search cannot be used, of the first one that cannot; those that are missing are not."""
    for number, ratio in itertools.product(search.rounds.tolist(), search.options["ratios"]):
        try:
            _sound_ticket(directory, search, number, ratio, run_hash)
        except UserError as error:
            pruning = search.pruning(ratio)
            name = ticket_name(number, pruning.scope, pruning.norm, ratio, pruning.rules)
            if (directory.tickets / name / TICKET).exists():
                return [str(error)]
    return []


def _describe_rows(rows: Sequence[Row], summary: Row | None, rounds: int) -> list[str]:
    if not rows:
        lost = "has no rows, although the run is finished" if summary else "has no rows yet; the run has not begun"
        return [f"{METRICS} {lost}"]
    lines = []
    if lost := missing_rounds(rows, rows[-1]["round"]):
        lines.append(f"{METRICS} has no rows of rounds {describe_rounds(lost)}; sums over the run are not known")
    if summary is not None and rows[-1]["round"] != summary["round"]:
        lines.append(f"{METRICS} ends at round {rows[-1]['round']}, and the run has {summary['round']}")
    if summary is None:
        lines.append(
            f"the run has not finished: {rows[-1]['round']} of {rounds} rounds are done; run the "
            "same train command again to resume from its last checkpoint"
        )
    return lines


def read_costs(path: Path) -> list[Row]:
    """Read RUN/cost.csv, as `loft_jax.cost --format csv` prints it; [] if it is missing or empty.

    Raises:
      UnsoundError: it is no such table.
    """
    try:
        rows: list[Row] = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnsoundError(f"{COSTS} cannot be read ({error.strerror})") from None
    except (ValueError, csv.Error) as error:
        raise UnsoundError(f"{COSTS} cannot be read ({error})") from None
    for row in rows:
        if None in (*row, *row.values()):
            raise UnsoundError(f"{COSTS} cannot be read (its rows differ in length)")
        for column, text in row.items():
            if column not in _WORDS and not _is_number(text):
                raise UnsoundError(f"{COSTS} cannot be read ({column}: {format_value(text)} must be a number)")
    return rows


# Columns of cost.csv that hold no numbers.
_WORDS = ("method", "momentum", "bytes_counts", "bytes_event")


def _is_number(text: str) -> bool:
    try:
        return not text or 0 <= float(text) < float("inf")
    except ValueError:
        return False


def cost_command(directory: RunDirectory) -> str:
    """Return the command that writes RUN/cost.csv."""
    command = offer("cost", "--format", "csv", "--config", directory.path / CONFIG, ">", directory.path / COSTS)
    return command.replace(" '>' ", " > ", 1)


def pruning_of(row: Row) -> Pruning:
    """Return how the ticket of a retraining was drawn."""
    return Pruning(row["ratio"], row["scope"], row["norm"], row.get("rules") or "")


def last_ticket_results(run: RunFiles, mode: str) -> dict[Pruning, Row]:
    """Pruning -> the retraining of its last ticket in a mode, not rewound to a later round; the most pruned first."""
    found: dict[Pruning, Row] = {}
    for row in run.retrained:
        if row["mode"] == mode and not row["rewind_to"]:
            before = found.get(pruning_of(row))
            if before is None or row["ticket_round"] > before["ticket_round"]:
                found[pruning_of(row)] = row
    return {pruning: found[pruning] for pruning in most_pruned_first(found)}


def most_pruned_first(prunings: Iterable[Pruning]) -> list[Pruning]:
    """Sort prunings by ratio, the highest first; at equal ratio the paper's first."""
    return sorted(prunings, key=lambda p: (-p.ratio, p.scope != SCOPES[0], p.norm != NORMS[0], p.rules))
