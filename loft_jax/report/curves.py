"""Curves of a run for a report: their values, and when they settle."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from loft_jax.report.run_files import RunFiles
from loft_jax.storage import PHASES
from loft_jax.tickets import SearchFiles

Row = dict[str, Any]
SETTLED_WITHIN = 0.1
# A curve's points are too far apart to say when it settled if it did so between two of them that are more than this
# share of the curve apart.
_COARSE = 0.2


@dataclass(frozen=True)
class Settling:
    """When a curve has settled: between two of its points.

    Attributes:
      after: the last x at which it had not.
      by: the next one.
      at: `by`; None if the two are too far apart to call that the time, or if `by` is the curve's end, which is near
        itself whatever the curve does.
    """

    after: float
    by: float
    at: float | None

    def __str__(self) -> str:
        return f"between {self.after:.4g} and {self.by:.4g}" if self.at is None else f"{self.at:.4g}"

    def order(self, other: "Settling") -> str | None:
        """Return "before" or "after" the other; None if the points of the two cannot tell."""
        return "before" if self.by <= other.after else "after" if other.by <= self.after else None


def settling_of(x: Any, y: Any, within: float = SETTLED_WITHIN) -> Settling | None:
    """Return when y begins to stay near its last value.

    Near is a distance of at most `within` times the change of y from its first to its last value.

    Args:
      x, y: [T], x ascending; points where either is not finite are left out.
      within: a share.

    Returns:
      None if the first and the last value of y are equal, or if there are fewer than three values.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(y) < 3 or y[0] == y[-1]:
        return None
    outside = np.flatnonzero(np.abs(y - y[-1]) > within * abs(y[0] - y[-1]))
    after, by = float(x[outside[-1]]), float(x[outside[-1] + 1])
    known = by < x[-1] and by - after <= _COARSE * (x[-1] - x[0])
    return Settling(after, by, by if known else None)


def stage_distances(search: SearchFiles) -> dict[str, np.ndarray]:
    """Stage name -> [T], mean normalised distance to the reference over the stage's groups; "mean": over all groups."""
    stages: dict[str, list[np.ndarray]] = {}
    for name, distances in search.distances.items():
        stages.setdefault(name.split("/")[0], []).append(distances)
    return {name: np.mean(some, axis=0) for name, some in stages.items()} | {
        "mean": np.mean(list(search.distances.values()), axis=0)
    }


def describe_reference(search: SearchFiles) -> str:
    """Say what the distances of a search are measured from."""
    if search.names:
        return search.names[search.options["reference_round"]]
    if search.own_end:
        return "the run's own last snapshot"
    whose = "the run's own" if search.options["reference"] == "." else "another run's"
    return f"{whose} round {search.options['reference_round']}"


def training_curve(run: RunFiles, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of a metric, at the rounds where it was measured."""
    points = [(row["epoch"], row[key]) for row in run.rows if "epoch" in row and row.get(key) is not None]
    return np.array([x for x, _ in points]), np.array([y for _, y in points])


def accuracy_by_cost(run: RunFiles) -> list[Row]:
    """A row for each evaluation: accuracy, and the images, bytes and seconds of training until then.

    Bytes and seconds are None behind a round whose row is lost.
    """
    rows: list[Row] = []
    moved = seconds = 0.0
    for number, row in enumerate(run.rows):
        moved += row.get("bytes_on_the_wire", 0.0)
        seconds += sum(row.get(f"seconds/{phase}", 0.0) for phase in ("train", "sync"))
        if row.get("test/accuracy") is not None:
            images, known = row["round"] * run.config.images_per_round, row["round"] == number
            sums = {"bytes": moved if known else None, "seconds": seconds if known else None}
            rows.append({"accuracy": row["test/accuracy"], "images": images, **sums})
    return rows


def seconds_a_round(run: RunFiles) -> dict[str, float]:
    """Phase -> mean seconds of a trained round, without compilation, which happens once; {} if none was trained."""
    trained = [row for row in run.rows if "train/loss" in row]
    if not trained:
        return {}
    return {
        phase: sum(row.get(f"seconds/{phase}", 0.0) for row in trained) / len(trained)
        for phase in PHASES
        if phase != "compile"
    }


def moved_bytes(run: RunFiles) -> float | None:
    """Bytes that all devices together have sent in training so far; None if rows are lost."""
    return sum(row.get("bytes_on_the_wire", 0.0) for row in run.rows) if run.has_all_rows else None


def measured_seconds(run: RunFiles) -> float | None:
    """Seconds of all phases so far; None if rows are lost."""
    seconds = (value for row in run.rows for key, value in row.items() if key.startswith("seconds/"))
    return sum(seconds) if run.has_all_rows else None
