"""Everything that is computed from a run's snapshots to find its ticket: rankings, distances, overlaps, tickets."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save as to_safetensors

from loft_jax.errors import UserError
from loft_jax.metric import footrule, normalise
from loft_jax.partition import prune
from loft_jax.run_directory import RunDirectory, write_aside
from loft_jax.snapshots import Snapshots, rank_groups
from loft_jax.ticket import Ticket, kept_overlaps, ratio_text

COLUMNS = (
    *("run", "group", "round", "epoch", "to_reference", "to_reference_normalised"),
    *("to_previous", "to_previous_normalised", "train_loss", "test_accuracy"),
)
WEIGHTS = "weights.safetensors"

Row = dict[str, Any]
Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TicketSearch:
    """What a search found, computed and not yet written.

    Attributes:
      rounds: of the T snapshots, ascending.
      rankings: group name -> int32 [T, n].
      rows: of distances.csv, a row for each round and group.
      tickets: (round, ratio) -> ticket.
      overlaps: "{ratio}/{group}", and "{ratio}/all" for the groups together -> float32 [T, T], intersection over union
        of the kept filters.
    """

    rounds: Sequence[int]
    rankings: dict[str, np.ndarray]
    rows: list[Row]
    tickets: dict[tuple[int, float], Ticket]
    overlaps: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        snapshots: Snapshots,
        scores: Sequence[Scores],
        reference: Mapping[str, np.ndarray],
        ratios: Iterable[float],
        scope: str,
        norm: str,
    ) -> "TicketSearch":
        """Search a run.

        Args:
          scores: of every snapshot, group name -> float [n].
          reference: ranks that distances are taken from, group name -> int32 [n].
          ratios, scope, norm: of the tickets, as in `Ticket`.
        """
        rounds = snapshots.rounds
        of_round = [rank_groups(values) for values in scores]
        rankings = {name: np.stack([ranks[name] for ranks in of_round]) for name in of_round[0]}
        ratios = list(dict.fromkeys(ratios))
        tickets = {
            (r, ratio): snapshots.ticket(values, r, ratio, scope, norm)
            for r, values in zip(rounds, scores, strict=True)
            for ratio in ratios
        }
        overlaps = {}
        for ratio in ratios:
            overlaps |= _overlaps([tickets[r, ratio] for r in rounds], snapshots)
        rows = distance_rows(snapshots.directory, rounds, rankings, reference)
        return cls(rounds, rankings, rows, tickets, overlaps)

    def write(self, directory: RunDirectory, ticket_rounds: Sequence[int]) -> None:
        """Write all of it, the tickets of these rounds only; each file aside, then renamed."""
        rounds = np.array(self.rounds, np.int32)
        _write_arrays(directory.rankings, {**self.rankings, "rounds": rounds})
        _write_arrays(directory.overlaps, {**self.overlaps, "rounds": rounds})
        write_aside(directory.distances, _csv(self.rows))
        for (round_number, _), ticket in self.tickets.items():
            if round_number in ticket_rounds:
                ticket.write(directory.tickets / ticket.name)


def distance_rows(
    directory: RunDirectory, rounds: Sequence[int], rankings: Scores, reference: Mapping[str, np.ndarray]
) -> list[Row]:
    """The rows of distances.csv: every group at every snapshot, in the order of rounds.

    Args:
      rankings: group name -> int32 [T, n], T = len(rounds).
      reference: group name -> int32 [n].
    """
    metrics = {row["round"]: row for row in directory.rows()}
    rows = []
    for name, ranks in rankings.items():
        n = ranks.shape[1]
        to_reference = jax.vmap(footrule, in_axes=(None, 0))(reference[name], ranks).tolist()
        # The first snapshot has none before it.
        to_previous = [None, *jax.vmap(footrule)(ranks[:-1], ranks[1:]).tolist()]
        for round_number, at, step in zip(rounds, to_reference, to_previous, strict=True):
            metric = metrics.get(round_number, {})
            distances = (at, normalise(at, n), step, None if step is None else normalise(step, n))
            facts = (metric.get("train/loss"), metric.get("test/accuracy"))
            values = (str(directory.path), name, round_number, metric.get("epoch"), *distances, *facts)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return sorted(rows, key=lambda row: row["round"])


def reference_of(text: str | None, snapshots: Snapshots) -> tuple[Snapshots, int]:
    """RUN2 or RUN2@ROUND -> its snapshots and the round, by default the last; None for the run's own last.

    Raises:
      UserError: there is no such run or snapshot.
    """
    if text is None:
        return snapshots, snapshots.rounds[-1]
    path, at, round_text = text.rpartition("@")
    if not at or Path(text).is_dir():
        path, round_text = text, ""
    try:
        other = Snapshots(RunDirectory(path))
    except UserError as error:
        raise UserError(f"--reference {text}: {error}") from None
    if not round_text:
        return other, other.rounds[-1]
    if round_text not in map(str, other.rounds):
        raise UserError(
            f"--reference {text}: {path} has no snapshot of round {round_text}; "
            f"there are {', '.join(map(str, other.rounds))}"
        )
    return other, int(round_text)


def export_weights(snapshots: Snapshots, ticket: Ticket) -> int:
    """Write a ticket's compact variables of the snapshot it was drawn from beside it. Returns their size in bytes.

    The norm statistics are the full CNN's, pruned: re-estimate them, or train, before evaluating.
    """
    compact = jax.device_get(prune(snapshots.variables(ticket.round), snapshots.groups, ticket.kept))
    arrays = {path: np.ascontiguousarray(values) for path, values in flatten_dict(compact, sep="/").items()}
    content = to_safetensors(arrays, {"model": snapshots.config.model.name, "ticket": ticket.name})
    write_aside(snapshots.directory.tickets / ticket.name / WEIGHTS, content)
    return len(content)


def _overlaps(tickets: Sequence[Ticket], snapshots: Snapshots) -> dict[str, np.ndarray]:
    """Of one ratio's tickets, one a snapshot."""
    found, joined, total = {}, [[] for _ in tickets], 0
    for group in snapshots.groups:
        kept = [ticket.kept[group.name] for ticket in tickets]
        found[f"{ratio_text(tickets[0].ratio)}/{group.name}"] = kept_overlaps(kept, group.width)
        for all_kept, indices in zip(joined, kept, strict=True):
            all_kept += [total + i for i in indices]
        total += group.width
    return found | {f"{ratio_text(tickets[0].ratio)}/all": kept_overlaps(joined, total)}


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_aside(path, buffer.getvalue())


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
