"""The search for a run's ticket, computed from its snapshots: rankings, distances, overlaps, tickets."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from loft_jax.errors import UserError
from loft_jax.filters import (
    NO_RULES,
    FilterGroup,
    Norm,
    Rules,
    Scope,
    divide_by_chance,
    flatten_paths,
    footrule,
    kept_overlaps,
    rules_fields,
)
from loft_jax.storage import RunDirectory
from loft_jax.tickets.search_files import COLUMNS, write_search
from loft_jax.tickets.snapshots import Snapshots, rank_groups
from loft_jax.tickets.ticket import Ticket, ratio_text

Row = dict[str, Any]
Scores = Mapping[str, np.ndarray]


class Scored(Protocol):
    """States of one network, whose filters have scores: the snapshots of a run, or checkpoints from elsewhere.

    Attributes:
      directory: where the results are written; its metrics are those of the states, if it has any.
      path: of that directory.
      rounds: one for each state, ascending.
      groups: whose filters are ranked.
      config_hash: of the run's config; None where there is no run.
    """

    config_hash: str | None
    directory: RunDirectory
    path: Path
    rounds: list[int]
    groups: tuple[FilterGroup, ...]

    def scores(self, round_number: int, norm: Norm, batches: int = ...) -> dict[str, np.ndarray]:
        """Compute the scores of every group: float32 [n]; those that need training batches on so many of them."""
        ...

    def ticket(
        self,
        scores: dict[str, np.ndarray],
        round_number: int,
        ratio: float,
        scope: Scope,
        norm: Norm,
        rules: Rules = NO_RULES,
    ) -> Ticket:
        """Draw a ticket from a state's scores."""
        ...

    def check_rules(self, rules: Rules) -> None:
        """Raise UserError unless each pattern of the rules matches one of the groups."""
        ...


@dataclass(frozen=True)
class TicketSearch:
    """The results of a search, computed but not yet written.

    Attributes:
      options: the options of the search, as in search.json: reference, ratios, scope, norm, rules.
      rounds: rounds of the T snapshots, ascending.
      rankings: group name -> int32 [T, n].
      rows: rows of distances.csv, one for each round and group.
      tickets: (round, ratio) -> ticket.
      overlaps: "{ratio}/{group}", and "{ratio}/all" for the groups together -> float32 [T, T], intersection over union
        of the kept filters.
    """

    options: dict[str, Any]
    rounds: Sequence[int]
    rankings: dict[str, np.ndarray]
    rows: list[Row]
    tickets: dict[tuple[int, float], Ticket]
    overlaps: dict[str, np.ndarray]

    @classmethod
    def compute(
        cls,
        snapshots: "Scored",
        reference: "Reference",
        ratios: Iterable[float],
        scope: Scope,
        norm: Norm,
        progress: Callable[[Sequence[int]], Iterable[int]] = iter,
        rules: Rules = NO_RULES,
    ) -> "TicketSearch":
        """Search a run, with one snapshot in memory at a time.

        Args:
          snapshots: snapshots of the run.
          reference: snapshot from which distances are measured.
          ratios, scope, norm, rules: how tickets are drawn, as in `Ticket`.
          progress: wraps the rounds, to show progress while their snapshots are read.

        Raises:
          UserError: a snapshot cannot be read or ranked, or a pattern of the rules matches no group.
        """
        snapshots.check_rules(rules)
        rounds, ratios = snapshots.rounds, list(dict.fromkeys(ratios))
        scores = [snapshots.scores(round_number, norm, rules.score_batches) for round_number in progress(rounds)]
        ranked = [rank_groups(values) for values in scores]
        rankings = {name: np.stack([ranks[name] for ranks in ranked]) for name in ranked[0]}
        tickets = {
            (r, ratio): snapshots.ticket(values, r, ratio, scope, norm, rules)
            for r, values in zip(rounds, scores, strict=True)
            for ratio in ratios
        }
        overlaps: dict[str, np.ndarray] = {}
        for ratio in ratios:
            overlaps |= _compute_overlaps([tickets[r, ratio] for r in rounds], snapshots)
        rows = distance_rows(snapshots.directory, rounds, rankings, reference.ranks(norm, rules.score_batches))
        options = {
            "reference": _seen_from(snapshots.path, reference.snapshots.path),
            "reference_round": reference.round,
        }
        options |= {} if snapshots.config_hash is None else {"config_hash": snapshots.config_hash}
        options |= {"meaningless": reference.meaningless, "ratios": ratios, "scope": scope, "norm": norm}
        options |= rules_fields(rules)
        return cls(options, rounds, rankings, rows, tickets, overlaps)

    @property
    def own_end(self) -> bool:
        """Whether the reference is the run's own last snapshot, by whatever path."""
        at_end = [row["to_reference"] for row in self.rows if row["round"] == self.rounds[-1]]
        return self.options["reference_round"] == self.rounds[-1] and all(distance == 0 for distance in at_end)

    def write(self, directory: RunDirectory, ticket_rounds: Sequence[int]) -> None:
        """Write all results, but tickets of `ticket_rounds` only. Each file is written whole or not at all."""
        write_search(directory, self.options, self.rounds, self.rankings, self.overlaps, self.rows)
        for (round_number, _), ticket in self.tickets.items():
            if round_number in ticket_rounds:
                ticket.write(directory.tickets / ticket.name)


def distance_rows(
    directory: RunDirectory, rounds: Sequence[int], rankings: Scores, reference: Mapping[str, np.ndarray]
) -> list[Row]:
    """Return the rows of distances.csv: every group at every snapshot, in the order of rounds.

    Args:
      rankings: group name -> int32 [T, n], T = len(rounds).
      reference: group name -> int32 [n].
    """
    metrics = {row["round"]: row for row in directory.rows()}
    rows: list[Row] = []
    for name, ranks in rankings.items():
        n = ranks.shape[1]
        to_reference = jax.vmap(footrule, in_axes=(None, 0))(reference[name], ranks).tolist()
        # The first snapshot has no previous one.
        to_previous = [None, *jax.vmap(footrule)(ranks[:-1], ranks[1:]).tolist()]
        for round_number, at, step in zip(rounds, to_reference, to_previous, strict=True):
            metric = metrics.get(round_number, {})
            distances = (at, divide_by_chance(at, n), step, None if step is None else divide_by_chance(step, n))
            facts = (metric.get("train/loss"), metric.get("test/accuracy"))
            values = (str(directory.path), name, round_number, metric.get("epoch"), *distances, *facts)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return sorted(rows, key=lambda row: row["round"])


@dataclass(frozen=True)
class Reference:
    """The snapshot from which distances are measured.

    Attributes:
      snapshots: snapshots of its run, or other states of one network.
      round: its round.
      meaningless: why distances from it mean nothing, if it was accepted by --force; otherwise None.
    """

    snapshots: "Scored"
    round: int
    meaningless: str | None = None

    @classmethod
    def parse(cls, text: str | None, run: Snapshots, *, force: bool) -> "Reference":
        """Parse RUN2@ROUND, or RUN2 for its last snapshot. None means the run's own last snapshot.

        Raises:
          UserError: there is no such run or snapshot, or its filters cannot be compared with the run's.
        """
        if text is None:
            return cls(run, run.rounds[-1], None)
        has_round = "@" in text and not Path(text).is_dir()
        path, _, round_text = text.rpartition("@") if has_round else (text, "", "")
        try:
            other = Snapshots(RunDirectory(path))
        except UserError as error:
            raise UserError(f"--reference {text}: {error}") from None
        if has_round and round_text not in map(str, other.rounds):
            raise UserError(
                f"--reference {text}: {path} has no snapshot of round {round_text}; "
                f"there are {', '.join(map(str, other.rounds))}"
            )
        meaningless = check_comparable(run, other, force=force)
        return cls(other, int(round_text) if has_round else other.rounds[-1], meaningless)

    def ranks(self, norm: Norm, batches: int) -> dict[str, np.ndarray]:
        """Return group name -> int32 [n], the rank of each filter; `batches` as for `Scored.scores`."""
        return rank_groups(self.snapshots.scores(self.round, norm, batches))


def _seen_from(path: Path, other: Path) -> str:
    """Return the path from one directory to another: "." for the same, which it is after a move too."""
    return os.path.relpath(other.resolve(), path.resolve())


def _compute_overlaps(tickets: Sequence[Ticket], snapshots: "Scored") -> dict[str, np.ndarray]:
    """Compute the overlaps between tickets of one ratio, one ticket for each snapshot."""
    found, joined, total = {}, [[] for _ in tickets], 0
    for group in snapshots.groups:
        kept = [ticket.kept[group.name] for ticket in tickets]
        found[f"{ratio_text(tickets[0].ratio)}/{group.name}"] = kept_overlaps(kept, group.width)
        for all_kept, indices in zip(joined, kept, strict=True):
            all_kept += [total + i for i in indices]
        total += group.width
    return found | {f"{ratio_text(tickets[0].ratio)}/all": kept_overlaps(joined, total)}


def check_comparable(run: Snapshots, reference: Snapshots, *, force: bool) -> str | None:
    """Check that filter k of one run can be compared with filter k of another.

    Returns:
      Why the comparison is meaningless, if it is forced; otherwise None.

    Raises:
      UserError: the groups differ; or, unless forced, the runs started from different parameters.
    """
    groups = [{group.name: group.width for group in side.groups} for side in (run, reference)]
    if groups[0] != groups[1]:
        name = min(name for name in {**groups[0], **groups[1]} if groups[0].get(name) != groups[1].get(name))
        raise UserError(
            f"--reference {reference.path}: filter group {name!r} has {groups[1].get(name, 0)} filters there and "
            f"{groups[0].get(name, 0)} in {run.path}; use a run of the same model and width"
        )
    starts = [flatten_paths(side.variables(0)["params"]) for side in (run, reference)]
    # Another machine or version may round the same initialisation differently.
    differing = [path for path, values in starts[0].items() if not _are_close(values, starts[1].get(path))]
    if not differing:
        return None
    meaning = (
        f"{reference.path} started from other parameters than {run.path} (params/{differing[0]}): filter k of one has "
        "nothing to do with filter k of the other, so the distance between them is that of chance"
    )
    if not force:
        raise UserError(
            f"--reference {meaning}; use a run of the same seed, data and model, or --force to compare anyway"
        )
    return meaning


def _are_close(one: np.ndarray, other: np.ndarray | None) -> bool:
    return other is not None and other.shape == one.shape and np.allclose(one, other, rtol=1e-4, atol=1e-6)
