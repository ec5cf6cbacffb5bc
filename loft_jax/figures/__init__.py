"""The figures of a report's section, of whatever is there."""

from collections.abc import Callable, Iterator
from functools import partial

from loft_jax.figures import heat, lines
from loft_jax.figures.chart import Chart
from loft_jax.findings import Section, accuracy_by_cost, seconds_a_round, training_curve


def figures_of(section: Section, prefix: str) -> Iterator[Callable[[], Chart | None]]:
    """What draws each figure, in the order of the page; `prefix` begins the names of their files."""
    runs = list(zip(range(len(section.runs)), section.names, section.runs, strict=True))
    if any(run.search or len(training_curve(run, "train/loss")[0]) for _, _, run in runs):
        yield partial(lines.settling, f"{prefix}settling", section)
    if any(accuracy_by_cost(run) for _, _, run in runs):
        for cost in ("bytes", "images", "seconds"):
            yield partial(lines.accuracy_against, f"{prefix}accuracy_by_{cost}", section, cost)
    if any(run.retrained for _, _, run in runs):
        yield partial(lines.tickets_by_snapshot, f"{prefix}tickets_by_snapshot", section)
    for k, name, run in runs:
        if run.retrained:
            yield partial(lines.tickets_and_controls, f"{prefix}run{k + 1}_controls", k, name, run)
    if any(run.search for _, _, run in runs):
        yield partial(lines.kept_overlap, f"{prefix}overlap", section)
    if bars := [(k, name, split) for k, name, run in runs if (split := seconds_a_round(run))]:
        yield partial(lines.time_of_a_round, f"{prefix}time_of_a_round", bars)
    for k, name, run in runs:
        if run.search:
            yield partial(lines.distance_by_stage, f"{prefix}run{k + 1}_distance", k, name, run)
            yield partial(heat.distance_to_ticket, f"{prefix}run{k + 1}_to_ticket", k, name, run.search)
    for k, name, run in runs:
        if run.search:
            yield partial(heat.distance_maps, f"{prefix}run{k + 1}_maps", k, name, run.search)
            ratio = kept_ratio(run.search.asked["ratios"])
            if kept := run.kept(ratio):
                yield partial(heat.kept_filters, f"{prefix}run{k + 1}_kept", k, name, run.search, ratio, kept)


def kept_ratio(ratios: list[float]) -> float:
    """Of the ratios searched, the one whose kept filters are drawn: the nearest to a half."""
    return min(ratios, key=lambda ratio: abs(ratio - 0.5))
