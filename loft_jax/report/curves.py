"""Curves of a run for a report: when they settle, and what accuracy cost."""

from typing import Any

import numpy as np

from loft_jax.report.run_files import RunFiles, SearchFiles
from loft_jax.storage import PHASES

Row = dict[str, Any]
SETTLED_WITHIN = 0.1


def settled_at(x: Any, y: Any, within: float = SETTLED_WITHIN) -> float | None:
    """The first x from which on y stays within a share of its start-to-end range around its end.

    Args:
      x, y: [T]; places where either is not finite are left out.

    Returns:
      None where y ends where it began, or has fewer than three values.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(y) < 3 or y[0] == y[-1]:
        return None
    outside = np.flatnonzero(np.abs(y - y[-1]) > within * abs(y[0] - y[-1]))
    return float(x[outside[-1] + 1])


def stage_distances(search: SearchFiles) -> dict[str, np.ndarray]:
    """Stage name -> [T] the mean over its groups of the normalised distance to the reference; "mean": over all."""
    stages: dict[str, list[np.ndarray]] = {}
    for name, distances in search.distances.items():
        stages.setdefault(name.split("/")[0], []).append(distances)
    return {name: np.mean(some, axis=0) for name, some in stages.items()} | {
        "mean": np.mean(list(search.distances.values()), axis=0)
    }


def training_curve(run: RunFiles, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of a metric, where it was measured."""
    points = [(row["epoch"], row[key]) for row in run.rows if "epoch" in row and row.get(key) is not None]
    return np.array([x for x, _ in points]), np.array([y for _, y in points])


def accuracy_by_cost(run: RunFiles) -> list[Row]:
    """A row for each evaluation: accuracy, and images, bytes, and seconds of training up to there."""
    rows, moved, seconds = [], 0.0, 0.0
    for row in run.rows:
        moved += row.get("bytes_on_the_wire", 0.0)
        seconds += sum(row.get(f"seconds/{phase}", 0.0) for phase in ("train", "sync"))
        if row.get("test/accuracy") is not None:
            images = row["round"] * run.config.images_per_round
            rows.append({"accuracy": row["test/accuracy"], "images": images, "bytes": moved, "seconds": seconds})
    return rows


def seconds_a_round(run: RunFiles) -> dict[str, float]:
    """Phase -> its mean seconds over the trained rounds, compilation left out, which is once; {} before the first."""
    trained = [row for row in run.rows if "train/loss" in row]
    if not trained:
        return {}
    return {
        phase: sum(row.get(f"seconds/{phase}", 0.0) for row in trained) / len(trained)
        for phase in PHASES
        if phase != "compile"
    }


def moved_bytes(run: RunFiles) -> float:
    """What all devices together have sent in training so far."""
    return sum(row.get("bytes_on_the_wire", 0.0) for row in run.rows)
