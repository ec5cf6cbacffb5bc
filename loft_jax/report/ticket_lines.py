"""Figures of tickets: accuracy against when they were drawn, beside their controls, and what they share."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from loft_jax.report.chart import COLOURS, DASHES, INK, MARKERS, Chart, run_style, show_with_run
from loft_jax.report.comparison import Comparison
from loft_jax.report.run_files import RunFiles, most_pruned_first, pruning_of
from loft_jax.tickets import Pruning, ratio_text

_UNPRUNED = "Dotted: the unpruned network, retrained as a ticket is, or else at the end of its run."
# That fit side by side under an axis.
_LETTERS = 40
# Inches of one.
_LETTER = 0.09


def tickets_by_snapshot(name: str, comparison: Comparison) -> Chart | None:
    """Accuracy of retrained tickets against the epoch of their snapshot; None if no run has two snapshots."""
    caption = (
        "Test accuracy after rewinding and retraining, against the epoch of the snapshot that the ticket was drawn "
        "from; bars: sample deviation over seeds. Where a line is flat, an early ticket is as good as a late one. "
        f"{_UNPRUNED}"
    )
    chart = Chart(name, "Tickets by the snapshot they were drawn from", caption)
    ax = chart.figure.subplots()
    looks: dict[Pruning, dict[str, Any]] = {}
    for k, (run, label) in enumerate(zip(comparison.runs, comparison.names, strict=True)):
        series = _ticket_series(run)
        for pruning, rows in series.items():
            i = len(looks)
            look = looks.setdefault(pruning, {"linestyle": DASHES[i % 3], "marker": MARKERS[i % 6]})
            x, colour = [row["ticket_epoch"] for row in rows], run_style(k)["color"]
            _error_bars(chart, ax, k, f"{label}, {pruning.removed}", x, rows, {"color": colour, **look}, named=False)
        if series:
            ax.plot([], color=run_style(k)["color"], label=label)
            _draw_unpruned(ax, k, run, run_style(k)["color"])
    if not ax.containers:
        return None
    for pruning, look in looks.items():
        ax.plot([], color=INK, label=pruning.removed, **look)
    ax.set_xlabel("epoch of the snapshot")
    ax.set_ylabel("test accuracy, %")
    chart.name_lines()
    return chart


def tickets_and_controls(name: str, number: int, title: str, run: RunFiles) -> Chart | None:
    """Accuracy of the last ticket and of its controls at every ratio; None if no control was retrained."""
    last = max((row["ticket_round"] for row in run.retrained), default=0)
    chosen = [row for row in run.retrained if row["ticket_round"] in (0, last) and not row["rewind_to"]]
    series: dict[str, list[Any]] = {}
    for row in chosen:
        early = row["ticket_round"] == 0 < last
        series.setdefault(f"{row['mode']}, ticket of round 0" if early else row["mode"], []).append(row)
    if len(series) < 2:
        return None
    lengths = " or ".join(sorted({f"{row['epochs']:.1f}" for row in chosen}, key=float))
    caption = (
        f"Test accuracy after retraining, for {lengths} epochs, the last ticket (rewind: to its initial weights) and "
        f"its controls; bars: sample deviation over seeds. {_gap(series)}{_UNPRUNED}"
    )
    chart = Chart(name, f"{title}: ticket against controls", caption, run=number)
    ax = chart.figure.subplots()
    prunings = most_pruned_first(set(map(pruning_of, chosen)))[::-1]
    for i, (mode, rows) in enumerate(series.items()):
        shift = 0.12 * (i - (len(series) - 1) / 2)
        x = [prunings.index(pruning_of(row)) + shift for row in rows]
        look = {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "linestyle": "none"}
        _error_bars(chart, ax, number, mode, x, rows, look)
    _draw_unpruned(ax, number, run, INK)
    _name_prunings(chart, ax, [pruning.share for pruning in prunings])
    ax.set_xlim(-0.5, len(prunings) - 0.5)
    ax.set_xlabel("filters removed")
    ax.set_ylabel("test accuracy, %")
    chart.name_lines()
    return chart


def _gap(series: Mapping[str, Any]) -> str:
    if "random" not in series:
        return ""
    return "The gap to random filters shows what the choice of filters is worth. "


def _draw_unpruned(ax: Axes, number: int, run: RunFiles, colour: str) -> None:
    """Draw a line at the unpruned network's accuracy: retrained as a ticket is, or else that of the run's end."""
    retrained = [row for row in run.retrained if not row["ratio"] and row["mode"] == "rewind" and not row["rewind_to"]]
    if retrained:
        accuracy = max(retrained, key=lambda row: row["ticket_round"])["test_accuracy_mean"]
    elif run.summary:
        accuracy = run.summary["test/accuracy"]
    else:
        return
    line = ax.axhline(100 * accuracy, color=colour, linestyle=":", linewidth=1, label="unpruned")
    show_with_run(number, line)


def _name_prunings(chart: Chart, ax: Axes, shares: Sequence[str]) -> None:
    """Label places 0, 1, ... with the shares removed, upright where they would touch each other."""
    lines = [share.replace(" ", "\n", 1) for share in shares]
    crowded = len(shares) * max(len(line) for text in lines for line in text.split("\n")) > _LETTERS
    if crowded:
        chart.figure.set_figheight(chart.figure.get_figheight() + _LETTER * max(map(len, shares)))
    ax.set_xticks(range(len(shares)), shares if crowded else lines, rotation=90 if crowded else 0)


def kept_overlap(name: str, comparison: Comparison) -> Chart | None:
    """How much of the last ticket each earlier one keeps, over training, for every ratio searched.

    None if no run has two snapshots and a ratio that removes filters.
    """
    caption = (
        "Intersection over union of the filters kept by the ticket of a snapshot and by that of the last snapshot, "
        "over all filter groups. It reaches 1 where the ticket no longer changes."
    )
    both = enumerate(zip(comparison.runs, comparison.names, strict=True))
    found = [(k, label, run.search) for k, (run, label) in both if run.search and len(run.search.rounds) > 1]
    ratios = sorted({ratio for _, _, search in found for ratio in search.options["ratios"] if ratio})
    if not ratios:
        return None
    chart = Chart(name, "Overlap of tickets with the last", caption)
    ax = chart.figure.subplots()
    for k, label, search in found:
        for i, ratio in enumerate(ratios):
            if ratio not in search.options["ratios"]:
                continue
            x, y = search.epochs, search.overlaps[f"{ratio_text(ratio)}/all"][:, -1]
            show_with_run(k, *ax.plot(x, y, color=run_style(k)["color"], linestyle=DASHES[i % 4]))
            text = f"{label}, {search.pruning(ratio).removed}"
            chart.note_points(ax, x, y, [f"{text}, epoch {a:.2f}: {b:.2f}" for a, b in zip(x, y, strict=True)], k)
        ax.plot([], color=run_style(k)["color"], label=label)
    for i, ratio in enumerate(ratios):
        ax.plot([], color=INK, linestyle=DASHES[i % 4], label=Pruning(ratio).removed)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("epoch")
    ax.set_ylabel("intersection over union")
    chart.name_lines()
    return chart


def _error_bars(
    chart: Chart,
    ax: Axes,
    run: int,
    label: str,
    x: Sequence[float],
    rows: Sequence[Any],
    look: dict[str, Any],
    *,
    named: bool = True,
) -> None:
    y = [100 * row["test_accuracy_mean"] for row in rows]
    spread = [100 * (row["test_accuracy_std"] or 0) for row in rows]
    drawn = ax.errorbar(x, y, spread, label=label if named else None, capsize=2, elinewidth=0.8, **look)
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
