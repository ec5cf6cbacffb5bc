"""What a report consists of: for each group of comparable runs its figures and tables, then the paper's table."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track

from loft_jax.files import write_atomically, write_table
from loft_jax.report import heat, lines
from loft_jax.report.chart import Chart, run_style, style
from loft_jax.report.comparison import Section, sections_of
from loft_jax.report.curves import accuracy_by_cost, seconds_a_round, training_curve
from loft_jax.report.page import Part, Picture, Table, markdown
from loft_jax.report.run_files import RunFiles
from loft_jax.report.tables import messages, overview_table, own_table, paper_table, settling_table


def parts_of(runs: Sequence[RunFiles], figures: Path) -> list[Part]:
    """All parts of the report of these runs; writes the figures' files, with progress."""
    sections = sections_of(runs)
    prefixes = [f"s{i + 1}_" if len(sections) > 1 else "" for i in range(len(sections))]
    with style():
        drawing = [list(figures_of(section, prefix)) for section, prefix in zip(sections, prefixes, strict=True)]
        each = [draw for some in drawing for draw in some]
        progress = iter(track(each, description="figures", disable=not sys.stdout.isatty()))
        pictures = [[_picture(next(progress), figures) for _ in some] for some in drawing]
    parts = [
        Part(
            title=section.title,
            names=section.names,
            colours=[run_style(k)["color"] for k in range(len(section.runs))],
            messages=messages(section),
            missing=[(n, run.missing) for n, run in zip(section.names, section.runs, strict=True) if run.missing],
            pictures=[picture for picture in some if picture],
            tables=_tables(section, prefix),
        )
        for section, prefix, some in zip(sections, prefixes, pictures, strict=True)
    ]
    note = "- where nothing was published or run; the last column says what was run here."
    paper = Table("paper", "Test accuracy (%) and communication, published and ours", paper_table(runs), note)
    apart = [f"These runs differ in model or data set and are shown separately: {'; '.join(s.title for s in sections)}"]
    return [*parts, Part("The paper's table", messages=apart if len(sections) > 1 else (), tables=[paper])]


def write_tables(parts: Sequence[Part], directory: Path) -> None:
    """Each table as CSV and Markdown."""
    for table in (table for part in parts for table in part.tables):
        write_table(directory / f"{table.name}.csv", table.columns, table.rows)
        write_atomically(directory / f"{table.name}.md", markdown(table))


def _picture(draw: Any, directory: Path) -> Picture | None:
    chart = draw()
    if chart is None:
        return None
    rendered = chart.render()
    (directory / f"{chart.name}.svg").write_text(rendered.svg, encoding="utf-8")
    (directory / f"{chart.name}.png").write_bytes(rendered.png)
    return Picture(chart.name, chart.title, chart.caption, rendered.inline, rendered.values, chart.run, chart.wide)


def _tables(section: Section, prefix: str) -> list[Table]:
    gpipe = "improvement: bytes of GPipe with as many stages, where that run is here too, over the run's"
    tickets = (
        "Accuracies are those of the last ticket, rewound and retrained: mean ± sample deviation over seeds, in %."
    )
    rule = "Epochs after which a curve stays within 10 % of its whole way around its end."
    tables = [
        Table(f"{prefix}runs", "Runs", overview_table(section)),
        Table(f"{prefix}results", "Results, as the paper lays them out", own_table(section), f"{tickets} {gpipe}."),
    ]
    if settling := settling_table(section):
        tables.append(Table(f"{prefix}settling", "When distance and loss have settled", settling, rule))
    if retrained := _retrainings(section):
        tables.append(Table(f"{prefix}retrainings", "Retrainings", retrained))
    for k, (name, run) in enumerate(zip(section.names, section.runs, strict=True)):
        if run.costs:
            tables.append(
                Table(f"{prefix}run{k + 1}_cost", f"{name}: what the setting costs by every method", run.costs)
            )
    return tables


def _retrainings(section: Section) -> list[dict[str, Any]]:
    return [
        {
            "run": name,
            "ticket": row["ticket"],
            "epoch": None if row["ticket_epoch"] is None else round(row["ticket_epoch"], 2),
            "mode": row["mode"] + (f" to {row['rewind_to']}" if row["rewind_to"] else ""),
            "seeds": row["seeds"],
            "test accuracy, %": round(100 * row["test_accuracy_mean"], 2),
            "deviation": None if row["test_accuracy_std"] is None else round(100 * row["test_accuracy_std"], 2),
            "parameters": row["parameters"],
            "FLOPs an image": row["flops_per_image"],
        }
        for name, run in zip(section.names, section.runs, strict=True)
        for row in run.retrained
    ]


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
