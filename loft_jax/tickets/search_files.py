"""The files of a ticket search, written and read back: search.json, rankings.npz, overlaps.npz, distances.csv.

search.json comes last, with the options and a checksum of each of the others: so files of different searches, and
damaged ones, are told. Imports no JAX.
"""

import csv
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from loft_jax.config import Fraction
from loft_jax.errors import UserError
from loft_jax.files import DAMAGED, pack_arrays, table_text, write_atomically
from loft_jax.filters import NO_RULES, Norm, Rules, Scope
from loft_jax.storage import Count, Hash, RunDirectory, Schema, Text, UnsoundError, read_object, write_object
from loft_jax.tickets.ticket import Pruning, Ticket, ratio_text

Row = dict[str, Any]

COLUMNS = (
    *("run", "group", "round", "epoch", "to_reference", "to_reference_normalised"),
    *("to_previous", "to_previous_normalised", "train_loss", "test_accuracy"),
)
_NUMBERS = COLUMNS[3:]
# Scores that need no images, and so are the same in every search.
_OF_WEIGHTS = ("l2", "l1", "fpgm")
_SCHEMA = Schema(
    needed={
        **{"reference": Text, "reference_round": Count, "scope": Scope, "norm": Norm},
        "ratios": Annotated[list[Fraction], Field(min_length=1)],
    },
    optional={
        **{"meaningless": Text, "rules": dict[str, Any], "config_hash": Hash},
        **dict.fromkeys(("checkpoints", "files"), list[Text]),
        "crc32": dict[str, Count],
    },
)


def write_search(
    directory: RunDirectory,
    options: Mapping[str, Any],
    rounds: Sequence[int],
    rankings: Mapping[str, np.ndarray],
    overlaps: Mapping[str, np.ndarray],
    rows: Sequence[Row],
) -> None:
    """Write the files of a search, in place of an earlier one. Raises RunStopped if they cannot be written."""
    contents = {
        directory.rankings: pack_arrays({**rankings, "rounds": np.array(rounds, np.int32)}),
        directory.overlaps: pack_arrays({**overlaps, "rounds": np.array(rounds, np.int32)}),
        directory.distances: table_text(COLUMNS, rows).encode(),
    }
    for path, content in contents.items():
        write_atomically(path, content)
    sums = {path.name: zlib.crc32(content) for path, content in contents.items()}
    write_object(directory.search, {**options, "crc32": sums}, indent=2)


@dataclass(frozen=True)
class SearchFiles:
    """The files of a ticket search over T snapshots.

    Attributes:
      options: the options of the search, from search.json: reference, ratios, scope, norm, the name of its rules, and
        `made_by`, the `Rules` themselves.
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
    def read(cls, directory: RunDirectory, run_hash: str | None = None) -> "SearchFiles | None":
        """Read the files; None where nothing has been searched.

        Args:
          directory: where they are.
          run_hash: hash of the config of the run there; None for what is no run.

        Raises:
          UnsoundError: one is missing or damaged, or of another search or run.
        """
        given = read_object(directory.search, _SCHEMA)
        if given is None:
            return None
        if run_hash is not None and given.get("config_hash") not in (None, run_hash):
            theirs = given["config_hash"]
            raise UnsoundError(
                f"{directory.search}: is that of another run (config {theirs}; this run's is {run_hash})"
            )
        sums = given.get("crc32") or {}
        rankings, overlaps = (_arrays(path, sums) for path in (directory.rankings, directory.overlaps))
        rounds = rankings.pop("rounds")
        by_group = _distances(directory.distances, sums)
        names = tuple(given.get("checkpoints") or ())
        ratios = {f"{ratio_text(ratio)}/all" for ratio in given["ratios"]}
        of_rounds = [*([row["round"] for row in by_group.get(name, ())] for name in rankings)]
        if any(found != rounds.tolist() for found in [*of_rounds, overlaps.pop("rounds").tolist()]):
            raise UnsoundError(f"{directory.search}: its files are of different searches")
        if not ratios <= overlaps.keys() or len(names) not in (0, len(rounds)):
            raise UnsoundError(f"{directory.search}: its files are of different searches")
        distances = {name: np.array([row["to_reference_normalised"] for row in by_group[name]]) for name in rankings}
        epochs = np.array([row["epoch"] for row in by_group[next(iter(rankings))]])
        _check_shapes(directory.rankings, rankings, overlaps, len(rounds))
        # By what was measured, which is the same wherever the run is moved or copied to.
        own_end = given["reference_round"] == rounds[-1] and all(some[-1] == 0 for some in distances.values())
        options = {key: given[key] for key in ("reference", "reference_round", "ratios", "scope", "norm")}
        options["made_by"] = _rules(directory.search, given.get("rules"))
        options["rules"] = options["made_by"].name
        return cls(options, rounds, epochs, rankings, distances, overlaps, own_end, names)

    def pruning(self, ratio: float) -> Pruning:
        """Return how the tickets of a ratio were drawn."""
        return Pruning(ratio, self.options["scope"], self.options["norm"], self.options["rules"])

    def check_agrees(self, ticket: Ticket) -> None:
        """Raise UserError if a ticket does not keep the filters at the top of its round's ranking.

        Tickets of rounds that were not searched, or by another score, are not judged.
        """
        at = np.flatnonzero(self.rounds == ticket.round)
        if not at.size or self.options["norm"] != ticket.norm or ticket.norm not in _OF_WEIGHTS:
            return
        for group, kept in ticket.kept.items():
            ranks = self.rankings.get(group)
            if ranks is not None and kept[-1] < ranks.shape[1] and ranks[at[0], kept].max() != len(kept):
                raise UserError(
                    f"ticket {ticket.name}: keeps other filters of {group} than those with the highest scores in the "
                    "search; draw it again with python -m loft_jax.tickets RUN"
                )


def _rules(path: Path, fields: Any) -> Rules:
    try:
        return Rules.from_json(fields) if fields else NO_RULES
    except ValueError as error:
        raise UnsoundError(f"{path}: {error}") from None


def _content(path: Path, sums: Mapping[str, int]) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UnsoundError(f"{path}: is missing") from None
    except OSError as error:
        raise UnsoundError(f"{path}: cannot be read ({error.strerror})") from None
    if sums.get(path.name) not in (None, zlib.crc32(content)):
        raise UnsoundError(f"{path}: is damaged, or of another search (its checksum does not match)")
    return content


def _arrays(path: Path, sums: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read the arrays of a file: "rounds" and at least one more. Raises UnsoundError."""
    content = _content(path, sums)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
    except DAMAGED as error:
        raise UnsoundError(f"{path}: {error}") from None
    if not arrays.keys() > {"rounds"} or not arrays["rounds"].size:
        raise UnsoundError(f"{path}: holds no snapshots")
    return arrays


def _check_shapes(
    path: Path, rankings: Mapping[str, np.ndarray], overlaps: Mapping[str, np.ndarray], snapshots: int
) -> None:
    from loft_jax.filters import check_ranks

    for name, ranks in rankings.items():
        if ranks.ndim != 2 or len(ranks) != snapshots or not ranks.shape[1]:
            raise UnsoundError(f"{path}: {name} has the shape {ranks.shape}, and there are {snapshots} snapshots")
        try:
            for row in ranks:
                check_ranks(row, name)
        except ValueError as error:
            raise UnsoundError(f"{path}: {error}") from None
    for name, overlap in overlaps.items():
        if overlap.shape != (snapshots, snapshots):
            raise UnsoundError(f"{path.with_name('overlaps.npz')}: {name} has the shape {overlap.shape}")


def _distances(path: Path, sums: Mapping[str, int]) -> dict[str, list[Row]]:
    """Read the rows of each group, with numbers; NaN for an empty cell. Raises UnsoundError."""
    try:
        text = _content(path, sums).decode()
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows: list[Row] = [
            {"group": row["group"], "round": int(row["round"])} | {k: float(row[k] or "nan") for k in _NUMBERS}
            for row in table
        ]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UnsoundError(f"{path}: is no table of distances ({error!r})") from None
    by_group: dict[str, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row["group"], []).append(row)
    return by_group


def read_distances(directory: RunDirectory) -> dict[str, list[Row]]:
    """Read distances.csv: group name -> its rows, with numbers, NaN for an empty cell; {} where nothing is searched.

    Raises:
      UnsoundError: it is missing or damaged, or search.json is.
    """
    given = read_object(directory.search, _SCHEMA)
    return {} if given is None else _distances(directory.distances, given.get("crc32") or {})
