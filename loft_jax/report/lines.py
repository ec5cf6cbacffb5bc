"""Figures of curves: distance and loss over training, accuracy against cost, the time of a round."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from loft_jax.report.chart import COLOURS, DASHES, INK, Chart, run_style, show_with_run
from loft_jax.report.comparison import Comparison
from loft_jax.report.curves import (
    accuracy_by_cost,
    describe_reference,
    settling_of,
    stage_distances,
    training_curve,
)
from loft_jax.report.run_files import RunFiles
from loft_jax.tickets import SearchFiles

_COSTS = {
    "bytes": ("bytes moved", "bytes sent by all devices", "B"),
    "images": ("images seen", "training images, all workers", ""),
    "seconds": ("time", "training and sync, without compilation", "s"),
}
_HATCHES = ("", "///", "...")
# What an accuracy axis shows at least, in points, so that noise does not look like a difference.
_LEAST_POINTS = 1.0
_START = 0.25
_RULE = (
    "The marker on a curve shows where it settles: from there on, it differs from its last value by at most 10 % of "
    "its change from first to last value. A curve whose points are too far apart to say when has no marker."
)


def settling(name: str, comparison: Comparison) -> Chart | None:
    """Distance from the winning ticket, and training loss, of all runs over the same epochs; None without both."""
    both = list(enumerate(zip(comparison.runs, comparison.names, strict=True)))
    distances = [(k, label, run.search) for k, (run, label) in both if run.search and len(run.search.rounds) > 1]
    losses = [(k, label, curve) for k, (run, label) in both if len((curve := training_curve(run, "train/loss"))[0])]
    panels = [what for what, some in (("distance", distances), ("loss", losses)) if some]
    if not panels:
        return None
    mean = f"the mean filter distance from {_ticket_of(distances)}, divided by chance (dotted line: chance)"
    shown = {"distance": mean, "loss": "the training loss"}
    where = ("Above: ", "Below: ") if len(panels) > 1 else ("Shown: ",)
    caption = " ".join(f"{place}{shown[what]}." for place, what in zip(where, panels, strict=True))
    title = " and ".join(panels).capitalize() + " over training"
    chart = Chart(name, title, f"{caption} {_RULE}", size=(4.5, 1.2 + 1.7 * len(panels)))
    axes = dict(zip(panels, np.atleast_1d(chart.figure.subplots(len(panels), 1, sharex=True)), strict=True))
    for k, label, search in distances:
        _curve(chart, axes["distance"], k, label, search.epochs, stage_distances(search)["mean"], _look(k), "distance")
    for k, label, curve in losses:
        _curve(chart, axes["loss"], k, label, *curve, _look(k), "loss")
    _finish(axes)
    chart.name_lines()
    return chart


def _look(run: int) -> dict[str, Any]:
    return {key: value for key, value in run_style(run).items() if key != "marker"}


def _ticket_of(searches: Sequence[tuple[int, str, SearchFiles]]) -> str:
    """Say what the winning ticket is that distances are measured from."""
    found = {label: describe_reference(search) for _, label, search in searches}
    each = "; ".join(f"{label}: {reference}" for label, reference in found.items())
    return f"the winning ticket ({next(iter(found.values())) if len({*found.values()}) == 1 else each})"


def _finish(axes: Mapping[str, Axes]) -> None:
    """Name the axes of a figure of distance, of loss, or of both, the distance above."""
    if above := axes.get("distance"):
        _draw_chance(above)
        above.set_ylabel("distance / chance")
    if below := axes.get("loss"):
        below.set_ylim(bottom=0)
        below.set_ylabel("training loss")
    list(axes.values())[-1].set_xlabel("epoch")


def distance_by_stage(name: str, number: int, title: str, run: RunFiles) -> Chart:
    """Distance of one run from the winning ticket, a line for each stage of the network, above its training loss."""
    search = run.search
    assert search is not None, "needs a run whose tickets have been searched"
    own = " It falls to 0 by construction, because the ticket is the run's own end." if search.own_end else ""
    caption = (
        f"Distance from the winning ticket ({describe_reference(search)}), of the network's stages and their mean; "
        f"dashed: the initialisation's distance; dotted: chance.{own} {_RULE}"
    )
    loss = training_curve(run, "train/loss")
    panels = ["distance", "loss"] if len(loss[0]) else ["distance"]
    heading = f"{title}: distance by stage" + (", and loss" if "loss" in panels else "")
    chart = Chart(name, heading, caption, size=(4.5, 1.2 + 1.7 * len(panels)), run=number)
    axes = dict(zip(panels, np.atleast_1d(chart.figure.subplots(len(panels), 1, sharex=True)), strict=True))
    above = axes["distance"]
    stages = stage_distances(search)
    mean = stages.pop("mean")
    for i, (stage, values) in enumerate(stages.items()):
        look = {"color": COLOURS[i % 6], "linestyle": DASHES[1 + i % 3], "linewidth": 1}
        _curve(chart, above, number, stage, search.epochs, values, look, "distance")
    _curve(chart, above, number, "mean", search.epochs, mean, {"color": INK, "linewidth": 2}, "distance")
    above.axhline(mean[0], color=INK, linestyle="--", linewidth=0.8)
    above.annotate("initialisation", (1, mean[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    chart.name_lines()
    if "loss" in axes:
        _curve(chart, axes["loss"], number, "loss", *loss, {"color": INK}, "loss")
    _finish(axes)
    return chart


def accuracy_against(name: str, comparison: Comparison, cost: str) -> Chart | None:
    """Test accuracy over bytes, images or seconds, a line for each run; None if no run had that cost.

    `cost` is a key of `accuracy_by_cost`.
    """
    title, explained, unit = _COSTS[cost]
    axis = EngFormatter(unit=unit)
    curves = []
    for k, (run, label) in enumerate(zip(comparison.runs, comparison.names, strict=True)):
        rows = [row for row in accuracy_by_cost(run) if row[cost] is not None]
        if any(row[cost] for row in rows):
            curves.append((k, label, [row[cost] for row in rows], [100 * row["accuracy"] for row in rows]))
    if not curves:
        return None
    lowest, highest = _accuracy_range([y for *_, y in curves])
    cut = any(min(y) < lowest for *_, y in curves)
    below = f" The axis begins at {lowest:.4g} %: what was lower, at the start, is not shown." if cut else ""
    caption = f"Test accuracy of the full CNN against {explained}, so far. Higher and further left is better.{below}"
    chart = Chart(name, f"Accuracy against {title}", caption)
    ax = chart.figure.subplots()
    for k, label, x, y in curves:
        show_with_run(k, *ax.plot(x, y, label=label, **run_style(k)))
        shown = [i for i, value in enumerate(y) if value >= lowest]
        texts = [f"{label}: {y[i]:.2f} % after {axis.format_data(x[i])}" for i in shown]
        chart.note_points(ax, [x[i] for i in shown], [y[i] for i in shown], texts, k)
    ax.set_ylim(lowest, highest)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(axis)
    ax.set_xlabel(title)
    ax.set_ylabel("test accuracy, %")
    chart.name_lines()
    return chart


def _accuracy_range(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the ends of an axis for curves of accuracy, in percent.

    It leaves out what is low in the first quarter of training, where accuracies rise from chance: that would leave no
    room for the differences that there are at the end.
    """
    later = [value for curve in curves for value in curve[math.ceil(_START * (len(curve) - 1)) :]]
    span = max(later) - min(later)
    margin = max(0.1 * span, (_LEAST_POINTS - span) / 2)
    lowest, everything = min(later) - margin, [value for curve in curves for value in curve]
    # A curve that has only begun lower by a little is shown whole.
    lowest = min(everything) - margin if min(everything) > lowest - 5 * margin else lowest
    return max(0.0, lowest), max(everything) + margin


def time_of_a_round(name: str, bars: Sequence[tuple[int, str, dict[str, float]]]) -> Chart:
    """Mean seconds of a round by phase; `bars`: number of a run in its comparison, its name, and phase -> seconds."""
    caption = "Mean seconds of a round over the run, without compilation; evaluation is spread over all rounds."
    chart = Chart(name, "Where the time of a round went", caption, size=(4.5, 1.5 + 0.4 * len(bars)))
    ax = chart.figure.subplots()
    phases = [phase for phase in bars[0][2] if any(split[phase] for *_, split in bars)]
    for place, (k, label, split) in enumerate(bars):
        left = 0.0
        for i, (phase, seconds) in enumerate((phase, split[phase]) for phase in phases):
            look = {"color": COLOURS[i], "hatch": _HATCHES[i % 3], "edgecolor": "white", "linewidth": 0}
            show_with_run(k, *ax.barh(-place, seconds, 0.6, left, label=None if place else phase, **look))
            text = f"{label}: {phase} {seconds:.3g} s, {seconds / sum(split.values()):.0%}"
            chart.note_points(ax, [left + seconds / 2], [-place], [text], k)
            left += seconds
    ax.set_yticks([-place for place in range(len(bars))], [label for _, label, _ in bars])
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("seconds a round")
    chart.name_lines()
    return chart


def _curve(chart: Chart, ax: Axes, run: int, label: str, x: Any, y: Any, look: dict[str, Any], what: str) -> None:
    show_with_run(run, *ax.plot(x, y, label=label, **look))
    chart.note_points(ax, x, y, [f"{label}, epoch {a:.2f}: {what} {b:.3g}" for a, b in zip(x, y, strict=True)], run)
    settled = settling_of(x, y)
    if settled and settled.at is not None:
        at = settled.at
        value = float(np.asarray(y)[np.flatnonzero(np.asarray(x) == at)[0]])
        # Above the lines of all runs.
        marker = {"marker": "D", "markersize": 6, "markeredgecolor": "white", "zorder": 3}
        mark = ax.plot([at], [value], color=look["color"], **marker)
        show_with_run(run, *mark)
        chart.note_points(ax, [at], [value], [f"{label}: {what} settled at epoch {at:.2f}"], run)


def _draw_chance(ax: Axes) -> None:
    ax.axhline(1, color=INK, linestyle=":", linewidth=0.8)
    ax.annotate("chance", (1, 1), xycoords=("axes fraction", "data"), ha="right", va="top")
    ax.set_ylim(0, max(1.15, ax.get_ylim()[1]))
