"""What the levels have reached: levels.csv, means over seeds, and what follows from them. Imports no JAX."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loft_jax.console import console, make_table
from loft_jax.files import write_table
from loft_jax.lottery.training import TICKET
from loft_jax.storage import RunDirectory, seed_of

LEVELS = "levels.csv"
SETTINGS = "lottery.yaml"
_MEASURED = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
COLUMNS = (
    *("seed", "control", "level", "share_left", "weights_left", "weights", "rewind_to"),
    *("early_step", *(f"early_{name}" for name in _MEASURED)),
    *("end_step", *(f"end_{name}" for name in _MEASURED), "end_train_loss"),
)
_NEEDED = {"seed", "control", "level", "weights_left", "weights", "rewind_to"}

Row = dict[str, Any]
# Mean over the seeds, and the sample's deviation; None for one seed.
Spread = tuple[float, float | None]


@dataclass(frozen=True)
class Point:
    """A level of a curve.

    Attributes:
      share_left: share of the weights of kernels that are left, a mean over the seeds.
      seeds: the seeds that have finished it.
      step, early, end: step of least validation loss, test accuracy there, and test accuracy at the end.
    """

    level: int
    share_left: float
    seeds: tuple[int, ...]
    step: Spread
    early: Spread
    end: Spread


@dataclass(frozen=True)
class Curve:
    """The ticket, or a control, over the levels; controls begin at level 1."""

    control: str
    points: tuple[Point, ...]


def is_lottery(run: Path) -> bool:
    """Whether a directory is that of a lottery."""
    return (run / SETTINGS).exists()


def collect_levels(run: Path) -> tuple[list[Row], int]:
    """Return a row with `COLUMNS` for each finished training of a lottery, and the number of unfinished ones.

    The step of least validation loss is that of the first row of metrics with the least; it is judged afterwards, and
    as finely as train.eval_every says.
    """
    rows, unfinished = [], 0
    for path in run.glob("seed*/level*/*"):
        directory, seed = RunDirectory(path), seed_of(path.parent.parent.name)
        if seed is None or not directory.started:
            continue  # A copy of a seed's directory counts no second time.
        summary = directory.summary()
        judged = [row for row in directory.rows() if "validation/loss" in row]
        if summary is None or not judged or not summary.keys() >= _NEEDED or summary["seed"] != seed:
            unfinished += 1
        else:
            rows.append(_row(summary, judged))
    rows.sort(key=lambda row: (row["seed"], row["level"], row["control"] != TICKET, row["control"]))
    return rows, unfinished


def write_levels(run: Path) -> list[Row]:
    """Collect all finished trainings into levels.csv. Returns its rows."""
    rows, _ = collect_levels(run)
    write_table(run / LEVELS, COLUMNS, rows)
    return rows


def curves(rows: Sequence[Row]) -> list[Curve]:
    """Make the curves of ticket and controls from rows of levels.csv: means over seeds, by level; the ticket first."""
    by_control: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        by_control.setdefault(row["control"], {}).setdefault(row["level"], []).append(row)
    names = sorted(by_control, key=lambda control: (control != TICKET, control))
    return [
        Curve(name, tuple(_point(level, found) for level, found in sorted(by_control[name].items()))) for name in names
    ]


def claims(rows: Sequence[Row]) -> list[str]:
    """Say at which levels the ticket keeps up with the whole network, and is ahead of its controls.

    Compared are means over seeds: of the test accuracy at the early step, and of that step.
    """
    found = {curve.control: {point.level: point for point in curve.points} for curve in curves(rows)}
    ticket = found.pop(TICKET, {})
    others = {"the whole network": dict.fromkeys(ticket, ticket[0]) if 0 in ticket else {}, **found}
    sentences = []
    for name, points in others.items():
        levels = [level for level in sorted(points) if level and level in ticket]
        accurate = _where([(ticket[level], ticket[level].early[0] >= points[level].early[0]) for level in levels])
        sooner = _where([(ticket[level], ticket[level].step[0] < points[level].step[0]) for level in levels])
        if levels:
            sentences.append(f"ticket: at least as accurate as {name} {accurate}; its early step is sooner {sooner}")
    return sentences


def print_levels(rows: Sequence[Row]) -> None:
    """Print means over seeds, and what follows from them."""
    title = "means over seeds ± sample deviation, %; early: at the step of least validation loss"
    table = make_table(title, "control", "level", "left", "seeds", "early step", "early test", "end test")
    for curve in curves(rows):
        for point in curve.points:
            accuracies = [_percent(spread) for spread in (point.early, point.end)]
            seeds = " ".join(map(str, point.seeds))
            left = f"{100 * point.share_left:.2f}"
            table.add_row(curve.control, str(point.level), left, seeds, f"{point.step[0]:,.0f}", *accuracies)
    console().print(table)
    for sentence in claims(rows):
        print(f"result    {sentence}")


def _row(summary: Row, judged: Sequence[Row]) -> Row:
    least, last = min(judged, key=lambda row: row["validation/loss"]), judged[-1]
    row = {key: summary[key] for key in _NEEDED}
    row["share_left"] = summary["weights_left"] / summary["weights"]
    for when, measured in (("early", least), ("end", last)):
        row[f"{when}_step"] = measured["step"]
        row |= {f"{when}_{name}": measured[name.replace("_", "/", 1)] for name in _MEASURED}
    row["end_train_loss"] = summary.get("train/loss")
    return row


def _point(level: int, rows: Sequence[Row]) -> Point:
    keys = ("early_step", "early_test_accuracy", "end_test_accuracy")
    spreads = (_spread([row[key] for row in rows]) for key in keys)
    seeds = tuple(sorted(row["seed"] for row in rows))
    return Point(level, statistics.fmean(row["share_left"] for row in rows), seeds, *spreads)


def _spread(values: Sequence[float]) -> Spread:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _percent(spread: Spread) -> str:
    mean, deviation = spread
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _where(judged: Sequence[tuple[Point, bool]]) -> str:
    """Say at how many levels something holds, and which share of the weights is left at the last of them."""
    holding = [point for point, holds in judged if holds]
    count = f"at {len(holding) or 'none'} of {len(judged)} levels"
    return f"{count}, down to {holding[-1].share_left:.2%} of the weights" if holding else count
