"""Figures over snapshots and filter groups: distances as heat maps, and the filters that tickets keep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from loft_jax.filters import divide_by_chance, footrule_matrix
from loft_jax.report.chart import COLOUR_MAP, COLOURS, Chart
from loft_jax.report.curves import describe_reference
from loft_jax.tickets import SearchFiles

_CHANCE = 1.0


def distance_maps(name: str, run: int, title: str, search: SearchFiles) -> Chart:
    """Filter distance between all snapshots of a run, a heat map for each filter group."""
    caption = (
        "Filter distance of the ranking at one snapshot (across) from that at another (up), divided by chance, in each "
        "filter group. Darker is smaller. A dark square at the top right is a time in which the ranking no longer "
        "changed."
    )
    chart, axes = _panels(name, f"{title}: filter distance between snapshots", caption, run, list(search.rankings))
    labels, images = _epoch_labels(search), []
    for ax, (group, ranks) in zip(axes, search.rankings.items(), strict=False):
        matrix = divide_by_chance(np.asarray(footrule_matrix(ranks)), ranks.shape[1])
        images.append(_image(ax, matrix))
        _epoch_ticks(ax.xaxis, search)
        _epoch_ticks(ax.yaxis, search)
        ax.set_title(group)
        chart.note_cells(ax, np.minimum(matrix, 2), labels, labels, f"{group}: {{column}} from {{row}}: {{value}}")
    _label_outer(
        chart, axes, len(search.rankings), _axis_of(search), "reference" if search.names else "reference: epoch"
    )
    bar = chart.figure.colorbar(images[-1], ax=axes.tolist(), shrink=0.6, extend="max", aspect=30)
    bar.set_label("filter distance / chance")
    return chart


def distance_to_ticket(name: str, run: int, title: str, search: SearchFiles) -> Chart:
    """Filter distance of every snapshot from the winning ticket, a row for each filter group."""
    groups = list(search.distances)
    reference = "the winning ticket's ranking" if not search.names else "the reference's ranking"
    caption = (
        f"Filter distance from {reference} ({describe_reference(search)}), divided by chance. "
        "Darker is smaller. Groups that become dark early have found their filters early."
    )
    chart = Chart(
        name,
        f"{title}: distance from {'the reference' if search.names else 'the winning ticket'}",
        caption,
        size=(4.5, 1.2 + 0.22 * len(groups)),
        run=run,
    )
    ax = chart.figure.subplots()
    # The first group is at the top, as in pictures of networks.
    values = np.array([search.distances[group] for group in reversed(groups)])
    image = _image(ax, values, aspect="auto")
    ax.set_yticks(range(len(groups)), reversed(groups))
    _epoch_ticks(ax.xaxis, search)
    ax.set_xlabel(_axis_of(search))
    bar = chart.figure.colorbar(image, ax=ax, extend="max")
    bar.set_label("filter distance / chance")
    labels = _epoch_labels(search)
    chart.note_cells(ax, np.minimum(values, 2), groups[::-1], labels, "{row}, {column}: {value}")
    return chart


def kept_filters(
    name: str, run: int, title: str, search: SearchFiles, ratio: float, kept: Mapping[str, np.ndarray]
) -> Chart:
    """Filters that the ticket of each snapshot keeps, group by group; filters are in the order of the last ranking."""
    removed = search.pruning(ratio).removed
    caption = (
        f"Filters that the ticket of each snapshot keeps with {removed}. Filters (across) are in the order "
        "of the last snapshot's ranking, so the last ticket keeps the block at the left. Where this block reaches far "
        "down, its filters were chosen early. In brackets: the number of filters of the group."
    )
    chart, axes = _panels(name, f"{title}: filters kept, {removed}", caption, run, list(kept), height=1.2)
    labels = _epoch_labels(search)
    for ax, (group, mask) in zip(axes, kept.items(), strict=False):
        order = np.argsort(search.rankings[group][-1])
        picture = np.zeros((*mask.shape, 4))
        picture[mask[:, order]] = (*(int(COLOURS[0][i : i + 2], 16) / 255 for i in (1, 3, 5)), 1)
        ax.imshow(picture, origin="lower", interpolation="none", aspect="auto")
        ax.grid(False)
        ax.set_xticks([])
        _epoch_ticks(ax.yaxis, search)
        ax.set_title(f"{group} ({mask.shape[1]})")
        columns = [f"filter {i}" for i in order]
        chart.note_cells(ax, mask[:, order].astype(float), labels, columns, f"{group}, {{row}}, {{column}}: {{kept}}")
    _label_outer(chart, axes, len(kept), "filters by final rank", _axis_of(search))
    return chart


def _axis_of(search: SearchFiles) -> str:
    return "checkpoint" if search.names else "epoch"


def _panels(
    name: str, title: str, caption: str, run: int, groups: Sequence[str], height: float = 1.65
) -> tuple[Chart, np.ndarray]:
    columns = _columns(len(groups))
    rows = -(-len(groups) // columns)
    size = (1.9 * columns + 1.2, height * rows + 0.6)
    chart = Chart(name, title, caption, size=size, run=run, wide=True)
    axes = np.atleast_1d(chart.figure.subplots(rows, columns, sharey=True)).ravel()
    for unused in axes[len(groups) :]:
        unused.set_visible(False)
    return chart, axes


def _columns(count: int) -> int:
    """Return the number of panels side by side: three to five, so that few places stay empty."""
    return min(count, min((4, 3, 5), key=lambda columns: -count % columns))


def _label_outer(chart: Chart, axes: np.ndarray, count: int, across: str, up: str) -> None:
    columns = _columns(count)
    for i, ax in enumerate(axes[:count]):
        if i + columns >= count:
            ax.set_xlabel(across)
        else:
            ax.tick_params(labelbottom=False)
        if i % columns == 0:
            ax.set_ylabel(up)


def _image(ax: Axes, values: np.ndarray, **options: Any) -> Any:
    ax.grid(False)
    return ax.imshow(values, cmap=COLOUR_MAP, vmin=0, vmax=_CHANCE, origin="lower", interpolation="none", **options)


def _epoch_ticks(axis: Any, search: SearchFiles) -> None:
    """Label three snapshots with their epochs. Neighbouring snapshots are at equal distances, whatever their epochs."""
    last = len(search.rounds) - 1
    at = sorted({round(last * share) for share in (0, 1 / 2, 1)})
    axis.set_ticks(at, [_epoch_text(search, i) for i in at])
    if search.names:
        axis.set_tick_params(labelrotation=30)


def _epoch_text(search: SearchFiles, i: int) -> str:
    if search.names:
        return search.names[i]
    epoch = search.epochs[i]
    return f"{epoch:.1f}" if np.isfinite(epoch) else f"r{search.rounds[i]}"


def _epoch_labels(search: SearchFiles) -> list[str]:
    if search.names:
        return list(search.names)
    return [f"round {r} (epoch {_epoch_text(search, i)})" for i, r in enumerate(search.rounds)]
