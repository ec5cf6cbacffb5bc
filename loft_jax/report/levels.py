"""The part of a report on iterative pruning: accuracy and early step against the share of weights left, and a table."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from loft_jax.config import Config
from loft_jax.errors import format_value
from loft_jax.lottery import LEVELS, TICKET, Curve, Point, Spread, claims, collect_levels, curves
from loft_jax.report.chart import INK, Chart, run_style
from loft_jax.report.page import Table
from loft_jax.storage import RunDirectory

Row = dict[str, Any]
_TICKS = 6
_SEEDS = "Means over the seeds; bars: sample deviation."
_AXIS = "The axis of shares is logarithmic, and weights are removed from left to right."
# What each figure shows: an attribute of `Point`, its title and axis, and the factor to the axis's unit.
_SHOWN = {
    "accuracy": ("early", "Accuracy at the early step", "test accuracy, %", 100),
    "end": ("end", "Accuracy at the end", "test accuracy, %", 100),
    "steps": ("step", "Early step", "step of least validation loss", 1),
}


@dataclass(frozen=True)
class LotteryFiles:
    """What a report reads of iterative pruning.

    Attributes:
      name: human-readable name: of its directory, with what was trained.
      rows: of its levels, as in levels.csv.
      missing: what is missing, a line each.
    """

    name: str
    rows: list[Row]
    missing: list[str]

    @classmethod
    def read(cls, directory: RunDirectory, config: Config) -> "LotteryFiles":
        """Read what has been trained so far."""
        rows, unfinished = collect_levels(directory.path)
        missing = [] if rows else ["no training has been finished yet"]
        if unfinished:
            missing.append(f"{unfinished} trainings have not finished, and are left out; run the same command again")
        name = format_value(directory.path.resolve().name)
        return cls(f"{name}: {config.model.name} on {config.data.name}, {config.method}", rows, missing)


def figures_of_levels(lottery: LotteryFiles, prefix: str) -> Iterator[partial[Chart]]:
    """Yield a function that draws each figure; names of files start with `prefix`."""
    found = curves(lottery.rows)
    for what in _SHOWN if found else ():
        yield partial(against_share, f"{prefix}levels_{what}", found, what)


def against_share(name: str, found: Sequence[Curve], what: str) -> Chart:
    """Draw one figure against the share of weights left, a line for the ticket and one for each control.

    Args:
      found: curves, the ticket first.
      what: key of `_SHOWN`.
    """
    attribute, title, label, factor = _SHOWN[what]
    least = " The early step is that of least validation loss." if what != "end" else ""
    whose = "of the ticket and its controls" if len(found) > 1 else "of the ticket"
    whole = " Dotted: the whole network." if _has_whole_network(found) else ""
    caption = f"{title} against the share of weights left, {whose}.{whole}{least} {_SEEDS} {_AXIS}"
    chart = Chart(name, f"{title}, by share of weights left", caption)
    ax = chart.figure.subplots()
    for number, curve in enumerate(found):
        spreads: list[Spread] = [getattr(point, attribute) for point in curve.points]
        x = [100 * point.share_left for point in curve.points]
        y, bars = ([factor * (spread[i] or 0) for spread in spreads] for i in (0, 1))
        ax.errorbar(x, y, bars, label=curve.control, capsize=2, elinewidth=0.8, **run_style(number))
        texts = [_text(curve, *values) for values in zip(curve.points, y, bars, strict=True)]
        chart.note_points(ax, x, y, texts)
        if _has_whole_network([curve]):
            ax.axhline(y[0], color=INK, linestyle=":", linewidth=0.8)
    _share_axis(ax, [100 * point.share_left for curve in found for point in curve.points])
    ax.set_ylabel(label)
    chart.name_lines()
    return chart


def _has_whole_network(found: Sequence[Curve]) -> bool:
    return any(curve.control == TICKET and curve.points[0].level == 0 for curve in found)


def tables_of_levels(lottery: LotteryFiles, prefix: str) -> list[Table]:
    """Make the table of means over seeds; none without results."""
    rows = [_row(curve, point) for curve in curves(lottery.rows) for point in curve.points]
    note = f"Early: at the step of least validation loss. {LEVELS} of the run has each seed."
    return [Table(f"{prefix}levels", "Levels: means over seeds, and sample deviations", rows, note)] if rows else []


def results_of_levels(lottery: LotteryFiles) -> list[str]:
    """Return what follows from the levels, a sentence each."""
    return claims(lottery.rows)


def _row(curve: Curve, point: Point) -> Row:
    row: Row = {"control": curve.control, "level": point.level, "weights left, %": round(100 * point.share_left, 3)}
    row["seeds"] = " ".join(map(str, point.seeds))
    for heading, spread, factor in (
        ("early step", point.step, 1),
        ("early test accuracy, %", point.early, 100),
        ("end test accuracy, %", point.end, 100),
    ):
        mean, deviation = spread
        row[heading] = round(factor * mean, 2)
        row[f"deviation of {heading.removesuffix(', %')}"] = None if deviation is None else round(factor * deviation, 2)
    return row


def _text(curve: Curve, point: Point, value: float, deviation: float) -> str:
    spread = f" ± {deviation:,.2f}" if deviation else ""
    seeds = " ".join(map(str, point.seeds))
    return f"{curve.control}, {100 * point.share_left:.2f} % left: {value:,.2f}{spread} (seeds {seeds})"


def _share_axis(ax: Axes, shares: Sequence[float]) -> None:
    """Make the axis of shares logarithmic and falling, with ticks at levels, so many that they do not touch."""
    levels = sorted(set(shares), reverse=True)
    apart, ticks = math.log(levels[0] / levels[-1]) / _TICKS, levels[:1]
    for share in levels[1:]:
        if math.log(ticks[-1] / share) >= apart:
            ticks.append(share)
    ax.set_xscale("log")
    ax.set_xlim(levels[0] * 1.1, levels[-1] / 1.1)
    ax.set_xticks(ticks, [f"{share:.3g}" for share in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("weights left, %")
