"""The contents of one run's files, for a report, with a line for everything that is missing.

Only reads, so it can be used during the run. Imports neither JAX nor a plotting library.
"""

import csv
import json
import shlex
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.config import Config
from loft_jax.errors import UserError
from loft_jax.filters import NORMS, SCOPES
from loft_jax.retrain import collect_results
from loft_jax.storage import CONFIG, COSTS, METRICS, RunDirectory
from loft_jax.tickets import Pruning, ratio_text, read_ticket, ticket_name

Row = dict[str, Any]

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, csv.Error)
# A flipped byte in a zip file can cause any of these.
_DAMAGED = (ValueError, EOFError, MemoryError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class SearchFiles:
    """The files of a ticket search over T snapshots.

    Attributes:
      options: the options of the search, from search.json: reference, ratios, scope, norm, and the name of its rules.
      rounds, epochs: [T], of the snapshots, ascending; an epoch is NaN if the metrics did not have it.
      rankings: group name -> int32 [T, n], 1 = highest score.
      distances: group name -> float [T], normalised filter distance to the reference; 1 is chance.
      overlaps: "{ratio}/{group}" and "{ratio}/all" -> float32 [T, T], intersection over union of the kept filters.
      own_end: whether the reference is the run's own last snapshot.
      names: of checkpoints that are no run's snapshots, which have no epochs; else empty.
    """

    options: Row
    rounds: np.ndarray
    epochs: np.ndarray
    rankings: dict[str, np.ndarray]
    distances: dict[str, np.ndarray]
    overlaps: dict[str, np.ndarray]
    own_end: bool
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: RunDirectory) -> "SearchFiles":
        """Read the files. Raises one of `_UNREADABLE` if one is missing or damaged, or of another search."""
        options = json.loads(directory.search.read_text(encoding="utf-8"))
        keys = ("reference", "reference_round", "ratios", "scope", "norm")
        given, options = options, {key: options[key] for key in keys}
        options["rules"] = given.get("rules", {}).get("name", "")
        names = tuple(map(str, given.get("checkpoints", ())))
        rankings, overlaps = _read_arrays(directory.rankings), _read_arrays(directory.overlaps)
        rounds = rankings.pop("rounds")
        with open(directory.distances, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        group_rows = {name: [row for row in rows if row["group"] == name] for name in rankings}
        columns = [[int(row["round"]) for row in some] for some in group_rows.values()]
        if any(found != rounds.tolist() for found in [*columns, overlaps.pop("rounds").tolist()]):
            raise ValueError("its files are of different searches")
        if not {f"{ratio_text(ratio)}/all" for ratio in options["ratios"]} <= overlaps.keys():
            raise ValueError("its files are of different searches")
        if len(names) not in (0, len(rounds)):
            raise ValueError("its files are of different searches")
        distances = {name: _floats(some, "to_reference_normalised") for name, some in group_rows.items()}
        epochs = _floats(next(iter(group_rows.values())), "epoch")
        own_end = options["reference_round"] == rounds[-1] and _is_same_path(options["reference"], directory.path)
        return cls(options, rounds, epochs, rankings, distances, overlaps, own_end, names)

    def pruning(self, ratio: float) -> Pruning:
        """Return how the tickets of a ratio were drawn."""
        return Pruning(ratio, self.options["scope"], self.options["norm"], self.options["rules"])


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
        missing: list[str] = []
        path = shlex.quote(str(directory.path))
        rows = directory.rows()
        summary = directory.summary()
        if not rows:
            missing.append(f"{METRICS} has no rows yet; the run has not begun")
        elif summary is None:
            missing.append(
                f"the run has not finished: {rows[-1]['round']} of {config.train.rounds} rounds are done; run the "
                "same train command again to resume from its last checkpoint"
            )
        search: SearchFiles | None = None
        try:
            search = SearchFiles.read(directory)
        except FileNotFoundError:
            missing.append(f"no tickets have been searched; python -m loft_jax.tickets {path}")
        except _UNREADABLE as error:
            missing.append(
                f"the ticket search cannot be read ({error}); search again: python -m loft_jax.tickets {path}"
            )
        if search and rows and search.rounds[-1] < max(row["round"] for row in rows):
            missing.append(f"the ticket search ends at round {search.rounds[-1]}; search again for later snapshots")
        retrained, unfinished = collect_results(directory)
        if not retrained:
            missing.append(f"no ticket has been retrained; python -m loft_jax.retrain {path} --ticket NAME")
        if unfinished:
            missing.append(f"{unfinished} retrainings have not finished, and are left out")
        costs = []
        try:
            with open(directory.path / COSTS, encoding="utf-8", newline="") as file:
                costs = list(csv.DictReader(file, strict=True))
            if any(None in (*row, *row.values()) for row in costs):
                costs = []
                raise ValueError("its rows differ in length")
        except FileNotFoundError:
            missing.append(
                "no costs have been computed; python -m loft_jax.cost --format csv --config "
                f"{shlex.quote(str(directory.path / CONFIG))} > {shlex.quote(str(directory.path / COSTS))}"
            )
        except _UNREADABLE as error:
            missing.append(f"{COSTS} cannot be read ({error})")
        return cls(directory, config, rows, summary, search, retrained, costs, missing)

    @property
    def data_name(self) -> str:
        """Name of the data set: for one that was read from a file, the name that the file gives."""
        return (self.directory.data_identity() or {}).get("name", self.config.data.name)

    @property
    def epochs(self) -> dict[int, float]:
        """Round -> epoch, from all rows."""
        return {row["round"]: row["epoch"] for row in self.rows if "epoch" in row}

    def kept(self, ratio: float) -> dict[str, np.ndarray]:
        """Group name -> bool [T, n]: filters that the ticket of each snapshot keeps; {} if a ticket is missing."""
        search = self.search
        if search is None:
            return {}
        masks = {name: np.zeros(ranks.shape, bool) for name, ranks in search.rankings.items()}
        pruning = search.pruning(ratio)
        for t, round_number in enumerate(search.rounds):
            name = ticket_name(int(round_number), pruning.scope, pruning.norm, ratio, pruning.rules)
            try:
                kept = read_ticket(self.directory.tickets / name).kept
                for group, mask in masks.items():
                    mask[t, kept[group]] = True
            except (UserError, KeyError, IndexError):
                return {}
        return masks


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file: "rounds" and at least one more. Raises OSError or ValueError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except _DAMAGED as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not arrays.keys() > {"rounds"} or not arrays["rounds"].size:
        raise ValueError(f"{path.name}: holds no snapshots")
    return arrays


def _floats(rows: Sequence[Row], column: str) -> np.ndarray:
    return np.array([float(row[column] or "nan") for row in rows])


def _is_same_path(one: str, other: Path) -> bool:
    return Path(one).resolve() == other.resolve()


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
