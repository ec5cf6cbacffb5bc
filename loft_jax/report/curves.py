"""Curves of a run for a report: their values, and when they settle."""

from typing import Any

import numpy as np

from loft_jax.report.run_files import RunFiles
from loft_jax.storage import PHASES
from loft_jax.tickets import SearchFiles

Row = dict[str, Any]
SETTLED_WITHIN = 0.1


def settled_at(x: Any, y: Any, within: float = SETTLED_WITHIN) -> float | None:
    """Return the first x from which on y stays near its last value.

    Near is a distance of at most `within` times the change of y from its first to its last value.

    Args:
      x, y: [T]; points where either is not finite are left out.
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
    return float(x[outside[-1] + 1])


def stage_distances(search: SearchFiles) -> dict[str, np.ndarray]:
    """Stage name -> [T], mean normalised distance to the reference over the stage's groups; "mean": over all groups."""
    stages: dict[str, list[np.ndarray]] = {}
    for name, distances in search.distances.items():
        stages.setdefault(name.split("/")[0], []).append(distances)
    return {name: np.mean(some, axis=0) for name, some in stages.items()} | {
        "mean": np.mean(list(search.distances.values()), axis=0)
    }


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
