"""Figures of curves: distance and loss over training, accuracy against cost, tickets against when they were drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from loft_jax.report.chart import COLOURS, DASHES, INK, MARKERS, Chart, run_style, show_with_run
from loft_jax.report.comparison import Comparison
from loft_jax.report.curves import accuracy_by_cost, settled_at, stage_distances, training_curve
from loft_jax.report.run_files import RunFiles, most_pruned_first, pruning_of
from loft_jax.tickets import Pruning, ratio_text

_COSTS = {
    "bytes": ("bytes moved", "bytes sent by all devices", "B"),
    "images": ("images seen", "training images, all workers", ""),
    "seconds": ("time", "training and sync, without compilation", "s"),
}
_HATCHES = ("", "///", "...")
_RULE = (
    "The marker on a curve shows where it settles: from there on, it differs from its last value by at most 10 % of "
    "its change from first to last value."
)


def settling(name: str, comparison: Comparison) -> Chart:
    """Distance from the winning ticket, and training loss, of all runs over the same epochs."""
    caption = (
        "Above: the mean filter distance from the winning ticket, divided by chance (dotted line: chance). Below: the "
        f"training loss. {_RULE}"
    )
    chart = Chart(name, "Distance and loss over training", caption, size=(4.6, 4.4))
    above, below = chart.figure.subplots(2, 1, sharex=True)
    for k, (run, label) in enumerate(zip(comparison.runs, comparison.names, strict=True)):
        look = {key: value for key, value in run_style(k).items() if key != "marker"}
        if run.search:
            mean = stage_distances(run.search)["mean"]
            _curve(chart, above, k, label, run.search.epochs, mean, look, "distance")
        _curve(chart, below, k, label, *training_curve(run, "train/loss"), look, "loss")
    _draw_chance(above)
    above.set_ylabel("filter distance / chance")
    _loss_axis(below)
    (below if below.lines else above).legend()
    return chart


def distance_by_stage(name: str, number: int, title: str, run: RunFiles) -> Chart:
    """Distance of one run from the winning ticket, a line for each stage of the network, above its training loss."""
    search = run.search
    assert search is not None, "needs a run whose tickets have been searched"
    own = " It falls to 0 by construction, because the ticket is the run's own end." if search.own_end else ""
    caption = (
        f"The stages of the network and their mean; dashed: the initialisation's distance; dotted: chance.{own} {_RULE}"
    )
    chart = Chart(name, f"{title}: distance by stage, and loss", caption, size=(4.6, 4.4), run=number)
    above, below = chart.figure.subplots(2, 1, sharex=True)
    stages = stage_distances(search)
    mean = stages.pop("mean")
    for i, (stage, values) in enumerate(stages.items()):
        look = {"color": COLOURS[i % 6], "linestyle": DASHES[1 + i % 3], "linewidth": 1}
        _curve(chart, above, number, stage, search.epochs, values, look, "distance")
    _curve(chart, above, number, "mean", search.epochs, mean, {"color": INK, "linewidth": 2}, "distance")
    above.axhline(mean[0], color=INK, linestyle="--", linewidth=0.8)
    above.annotate("initialisation", (1, mean[0]), xycoords=("axes fraction", "data"), ha="right", va="bottom", size=8)
    _draw_chance(above)
    above.set_ylabel("filter distance / chance")
    above.legend(ncols=2)
    _curve(chart, below, number, "loss", *training_curve(run, "train/loss"), {"color": INK}, "loss")
    _loss_axis(below)
    return chart


def accuracy_against(name: str, comparison: Comparison, cost: str) -> Chart:
    """Test accuracy over bytes, images or seconds, a line for each run; `cost` is a key of `accuracy_by_cost`."""
    title, explained, unit = _COSTS[cost]
    axis = EngFormatter(unit=unit)
    caption = f"Test accuracy of the full CNN against {explained}, so far. Higher and further left is better."
    chart = Chart(name, f"Accuracy against {title}", caption)
    ax = chart.figure.subplots()
    for k, (run, label) in enumerate(zip(comparison.runs, comparison.names, strict=True)):
        rows = [row for row in accuracy_by_cost(run) if row[cost] is not None]
        x, y = [row[cost] for row in rows], [100 * row["accuracy"] for row in rows]
        show_with_run(k, *ax.plot(x, y, label=label, **run_style(k)))
        texts = [f"{label}: {b:.2f} % after {axis.format_data(a)}" for a, b in zip(x, y, strict=True)]
        chart.note_points(ax, x, y, texts, k)
    ax.xaxis.set_major_formatter(axis)
    ax.set_xlabel(title)
    ax.set_ylabel("test accuracy, %")
    ax.legend()
    return chart


def tickets_by_snapshot(name: str, comparison: Comparison) -> Chart | None:
    """Accuracy of retrained tickets against the epoch of their snapshot; None if no run has two snapshots."""
    caption = (
        "Test accuracy after rewinding and retraining, against the epoch of the snapshot that the ticket was drawn "
        "from; bars: sample deviation over seeds. Where a line is flat, an early ticket is as good as a late one."
    )
    chart = Chart(name, "Tickets by the snapshot they were drawn from", caption)
    ax = chart.figure.subplots()
    for k, (run, label) in enumerate(zip(comparison.runs, comparison.names, strict=True)):
        for i, (pruning, rows) in enumerate(_ticket_series(run).items()):
            look = {**run_style(k), "linestyle": DASHES[i % 4], "marker": MARKERS[i % 6]}
            x = [row["ticket_epoch"] for row in rows]
            _error_bars(chart, ax, k, f"{label}, {pruning.removed}", x, rows, look)
    if not ax.containers:
        return None
    ax.set_xlabel("epoch of the snapshot")
    ax.set_ylabel("test accuracy, %")
    ax.legend()
    return chart


def tickets_and_controls(name: str, number: int, title: str, run: RunFiles) -> Chart | None:
    """Accuracy of the last ticket and of its controls at every ratio; None if none was retrained."""
    last = max((row["ticket_round"] for row in run.retrained), default=0)
    chosen = [row for row in run.retrained if row["ticket_round"] in (0, last) and not row["rewind_to"]]
    if not chosen:
        return None
    lengths = " or ".join(sorted({f"{row['epochs']:.1f}" for row in chosen}, key=float))
    caption = (
        f"Test accuracy after retraining, for {lengths} epochs, the last ticket (rewind: to its initial weights) and "
        "its controls; bars: sample deviation over seeds. The gap to random filters shows what the choice of filters "
        "is worth."
    )
    chart = Chart(name, f"{title}: ticket against controls", caption, run=number)
    ax = chart.figure.subplots()
    prunings = most_pruned_first(set(map(pruning_of, chosen)))[::-1]
    series: dict[str, list[Any]] = {}
    for row in chosen:
        early = row["ticket_round"] == 0 < last
        series.setdefault(f"{row['mode']}, ticket of round 0" if early else row["mode"], []).append(row)
    for i, (mode, rows) in enumerate(series.items()):
        shift = 0.12 * (i - (len(series) - 1) / 2)
        x = [prunings.index(pruning_of(row)) + shift for row in rows]
        look = {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "linestyle": "none"}
        _error_bars(chart, ax, number, mode, x, rows, look)
    ax.set_xticks(range(len(prunings)), [pruning.share.replace(" ", "\n", 1) for pruning in prunings])
    ax.set_xlim(-0.5, len(prunings) - 0.5)
    ax.set_xlabel("filters removed")
    ax.set_ylabel("test accuracy, %")
    ax.legend()
    return chart


def kept_overlap(name: str, comparison: Comparison) -> Chart:
    """How much of the last ticket each earlier one keeps, over training, for every ratio searched."""
    caption = (
        "Intersection over union of the filters kept by the ticket of a snapshot and by that of the last snapshot, "
        "over all filter groups. It reaches 1 where the ticket no longer changes."
    )
    chart = Chart(name, "Overlap of tickets with the last", caption)
    ax = chart.figure.subplots()
    ratios = sorted({ratio for run in comparison.runs if run.search for ratio in run.search.options["ratios"] if ratio})
    for k, (run, label) in enumerate(zip(comparison.runs, comparison.names, strict=True)):
        for i, ratio in enumerate(ratios):
            if run.search is None or ratio not in run.search.options["ratios"]:
                continue
            x, y = run.search.epochs, run.search.overlaps[f"{ratio_text(ratio)}/all"][:, -1]
            show_with_run(k, *ax.plot(x, y, color=run_style(k)["color"], linestyle=DASHES[i % 4]))
            text = f"{label}, {run.search.pruning(ratio).removed}"
            chart.note_points(ax, x, y, [f"{text}, epoch {a:.2f}: {b:.2f}" for a, b in zip(x, y, strict=True)], k)
    for k, (run, label) in enumerate(zip(comparison.runs, comparison.names, strict=True)):
        if run.search:
            ax.plot([], color=run_style(k)["color"], label=label)
    for i, ratio in enumerate(ratios):
        ax.plot([], color=INK, linestyle=DASHES[i % 4], label=Pruning(ratio).removed)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("epoch")
    ax.set_ylabel("intersection over union")
    ax.legend(ncols=2)
    return chart


def time_of_a_round(name: str, bars: Sequence[tuple[int, str, dict[str, float]]]) -> Chart:
    """Mean seconds of a round by phase; `bars`: number of a run in its comparison, its name, and phase -> seconds."""
    caption = "Mean seconds of a round over the run, without compilation; evaluation is spread over all rounds."
    chart = Chart(name, "Where the time of a round went", caption, size=(4.6, 1.3 + 0.4 * len(bars)))
    ax = chart.figure.subplots()
    for place, (k, label, split) in enumerate(bars):
        left = 0.0
        for i, (phase, seconds) in enumerate(split.items()):
            look = {"color": COLOURS[i], "hatch": _HATCHES[i % 3], "edgecolor": "white", "linewidth": 0}
            show_with_run(k, *ax.barh(-place, seconds, 0.6, left, label=None if place else phase, **look))
            text = f"{label}: {phase} {seconds:.3g} s, {seconds / sum(split.values()):.0%}"
            chart.note_points(ax, [left + seconds / 2], [-place], [text], k)
            left += seconds
    ax.set_yticks([-place for place in range(len(bars))], [label for _, label, _ in bars])
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("seconds a round")
    chart.figure.legend(loc="outside upper right", ncols=3)
    return chart


def _curve(chart: Chart, ax: Axes, run: int, label: str, x: Any, y: Any, look: dict[str, Any], what: str) -> None:
    show_with_run(run, *ax.plot(x, y, label=label, **look))
    chart.note_points(ax, x, y, [f"{label}, epoch {a:.2f}: {what} {b:.3g}" for a, b in zip(x, y, strict=True)], run)
    at = settled_at(x, y)
    if at is not None:
        value = float(np.asarray(y)[np.flatnonzero(np.asarray(x) == at)[0]])
        # Above the lines of all runs.
        marker = {"marker": "D", "markersize": 6, "markeredgecolor": "white", "zorder": 3}
        mark = ax.plot([at], [value], color=look["color"], **marker)
        show_with_run(run, *mark)
        chart.note_points(ax, [at], [value], [f"{label}: {what} settled at epoch {at:.2f}"], run)


def _error_bars(
    chart: Chart, ax: Axes, run: int, label: str, x: Sequence[float], rows: Sequence[Any], look: dict[str, Any]
) -> None:
    y = [100 * row["test_accuracy_mean"] for row in rows]
    spread = [100 * (row["test_accuracy_std"] or 0) for row in rows]
    drawn = ax.errorbar(x, y, spread, label=label, capsize=2, elinewidth=0.8, **look)
    show_with_run(run, *drawn.get_children())
    texts = [
        f"{label}: {a:.2f}" + (f" ± {b:.2f}" if b else "") + f" % (seeds {row['seeds']})"
        for a, b, row in zip(y, spread, rows, strict=True)
    ]
    chart.note_points(ax, x, y, texts, run)


def _ticket_series(run: RunFiles) -> dict[Pruning, list[Any]]:
    """Pruning -> its rewound retrainings in the order of epochs, if they are of at least two snapshots."""
    series: dict[Pruning, list[Any]] = {}
    for row in run.retrained:
        if row["mode"] == "rewind" and not row["rewind_to"] and row["ticket_epoch"] is not None:
            series.setdefault(pruning_of(row), []).append(row)
    ordered = {p: sorted(series[p], key=lambda row: row["ticket_epoch"]) for p in most_pruned_first(series)[::-1]}
    return {p: rows for p, rows in ordered.items() if len({row["ticket_round"] for row in rows}) > 1}


def _draw_chance(ax: Axes) -> None:
    ax.axhline(1, color=INK, linestyle=":", linewidth=0.8)
    ax.annotate("chance", (0.02, 1), xycoords=("axes fraction", "data"), va="bottom", size=8)
    ax.set_ylim(0, max(1.15, ax.get_ylim()[1]))


def _loss_axis(ax: Axes) -> None:
    ax.set_ylim(bottom=0)
    ax.set_ylabel("training loss")
    ax.set_xlabel("epoch")
