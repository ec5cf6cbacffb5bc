"""The figures of a comparison of checkpoints: those of a report's that need no run, and curves over the checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from loft_jax.distances.checkpoints import Checkpoints
from loft_jax.report import (
    COLOURS,
    DASHES,
    INK,
    Chart,
    distance_maps,
    distance_to_ticket,
    kept_filters,
    kept_ratio,
)
from loft_jax.tickets import SearchFiles, Ticket, ratio_text

_TITLE = "checkpoints"
# Layers with a line of their own colour; more could not be told apart.
_MOST_LAYERS = 6


def figures_of(
    checkpoints: Checkpoints, search: SearchFiles, tickets: Mapping[tuple[int, float], Ticket]
) -> Iterator[Callable[[], Chart | None]]:
    """Yield a function that draws each figure, in the order of the page."""
    yield partial(_scores_by_rank, checkpoints)
    if len(search.rounds) > 1:
        yield partial(_distance_curves, search)
        yield partial(_overlap_curves, search)
        yield partial(distance_to_ticket, "to_reference", 0, _TITLE, search)
        yield partial(distance_maps, "maps", 0, _TITLE, search)
        ratio = kept_ratio(search.options["ratios"])
        kept = {name: np.zeros(ranks.shape, bool) for name, ranks in search.rankings.items()}
        for (round_number, of_ticket), ticket in tickets.items():
            for name, filters in ticket.kept.items() if of_ticket == ratio else ():
                kept[name][round_number, filters] = True
        yield partial(kept_filters, "kept", 0, _TITLE, search, ratio, kept)


def _scores_by_rank(checkpoints: Checkpoints) -> Chart:
    """Scores of the last checkpoint's filters, the highest first, a line for each layer."""
    name, last = checkpoints.names[-1], checkpoints.rounds[-1]
    caption = (
        f"Scores ({checkpoints.norm}) of the filters of {name}, from the highest to the lowest, divided by the mean of "
        "their layer; a line for each layer, from the first (blue) to the last (yellow). Where a line falls early, few "
        "filters hold most of the layer."
    )
    chart = Chart("scores", "Scores of filters by rank", caption)
    ax = chart.figure.subplots()
    scores = {group: values for group, values in checkpoints.scores(last, checkpoints.norm).items() if len(values) > 1}
    for number, (group, values) in enumerate(scores.items()):
        y = np.sort(values)[::-1] / (values.mean() or 1)
        x = np.arange(len(y)) / (len(y) - 1)
        ax.plot(x, y, color=_shade(number, len(scores)), linewidth=1)
        ends = [0, len(y) // 2, len(y) - 1]
        chart.note_points(ax, x[ends], y[ends], [f"{group}: filter of rank {i + 1}, {y[i]:.2f}" for i in ends])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("rank, as a share of the filters")
    ax.set_ylabel("score / mean of the layer")
    return chart


def _distance_curves(search: SearchFiles) -> Chart:
    """Distance from the reference over the checkpoints, a thin line for each layer and a thick one for the mean."""
    reference = search.names[search.options["reference_round"]]
    caption = (
        f"Filter distance from the ranking of {reference}, divided by chance (dotted line: chance); the mean over "
        "layers (thick), and every layer (thin). The distance of the reference from itself is 0."
    )
    chart = Chart("distances", "Distance over the checkpoints", caption)
    ax = chart.figure.subplots()
    x, few = np.arange(len(search.rounds)), len(search.distances) <= _MOST_LAYERS
    for number, (group, values) in enumerate(search.distances.items()):
        colour = COLOURS[number] if few else _shade(number, len(search.distances))
        ax.plot(x, values, color=colour, linewidth=0.8, label=group if few else None)
        _note(chart, ax, x, values, group, search)
    mean = np.mean(list(search.distances.values()), axis=0)
    ax.plot(x, mean, color=INK, linewidth=2, marker="o", label="mean over layers")
    _note(chart, ax, x, mean, "mean over layers", search)
    ax.axhline(1, color=INK, linestyle=":", linewidth=0.8)
    ax.set_ylim(0, max(1.15, ax.get_ylim()[1]))
    _name_checkpoints(ax, search)
    ax.set_ylabel("filter distance / chance")
    ax.legend()
    return chart


def _overlap_curves(search: SearchFiles) -> Chart:
    """How much of the last checkpoint's ticket each checkpoint's ticket keeps, a line for each ratio."""
    caption = (
        "Intersection over union of the filters kept by the ticket of a checkpoint and by that of the last one, over "
        "all layers. It reaches 1 where the ticket no longer changes."
    )
    chart = Chart("overlap", "Overlap of tickets with the last", caption)
    ax, x = chart.figure.subplots(), np.arange(len(search.rounds))
    for number, ratio in enumerate(search.options["ratios"]):
        y, removed = search.overlaps[f"{ratio_text(ratio)}/all"][:, -1], search.pruning(ratio).removed
        ax.plot(x, y, color=COLOURS[number % 6], linestyle=DASHES[number % 4], marker="o", label=removed)
        _note(chart, ax, x, y, removed, search)
    ax.set_ylim(0, 1.02)
    _name_checkpoints(ax, search)
    ax.set_ylabel("intersection over union")
    ax.legend()
    return chart


def _note(chart: Chart, ax: Axes, x: np.ndarray, y: np.ndarray, label: str, search: SearchFiles) -> None:
    chart.note_points(ax, x, y, [f"{label}, {name}: {b:.3f}" for name, b in zip(search.names, y, strict=True)])


def _name_checkpoints(ax: Axes, search: SearchFiles) -> None:
    last = len(search.names) - 1
    at = sorted({round(last * share) for share in np.linspace(0, 1, min(last + 1, 8))})
    longest = max(len(search.names[i]) for i in at) > 6
    ax.set_xticks(at, [search.names[i] for i in at], rotation=30 if longest else 0, ha="right" if longest else "center")


def _shade(number: int, count: int) -> tuple[float, float, float]:
    """Return a colour from blue to yellow, for a layer by its place in the network."""
    start, end = ((0.0, 0.45, 0.70), (0.90, 0.62, 0.0))
    share = number / max(count - 1, 1)
    red, green, blue = (a + (b - a) * share for a, b in zip(start, end, strict=True))
    return red, green, blue
