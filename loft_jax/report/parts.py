"""The parts of a report: figures and tables of each comparison, the paper's table, then each lottery."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track

from loft_jax.console import shows_bars
from loft_jax.files import write_atomically, write_table
from loft_jax.report import heat, lines, pareto, ticket_lines
from loft_jax.report.chart import Chart, run_style, style
from loft_jax.report.comparison import Comparison, group_comparable_runs
from loft_jax.report.curves import seconds_a_round
from loft_jax.report.levels import LotteryFiles, figures_of_levels, results_of_levels, tables_of_levels
from loft_jax.report.page import Part, Picture, Table, markdown
from loft_jax.report.run_files import RunFiles
from loft_jax.report.tables import messages, overview_table, own_table, paper_table, settling_table

_OF_PAPER = "Rows of the paper's table to which a run of this report belongs; - means not published, or not run."


def parts_of(runs: Sequence[RunFiles], lotteries: Sequence[LotteryFiles], figures: Path) -> list[Part]:
    """Make all parts of the report of these runs. Writes the files of figures, and shows progress."""
    with style():
        pruned = list(_parts_of_lotteries(lotteries, figures))
    return [*(_parts_of_runs(runs, figures) if runs else ()), *pruned]


def _parts_of_lotteries(lotteries: Sequence[LotteryFiles], figures: Path) -> Iterator[Part]:
    for number, lottery in enumerate(lotteries, 1):
        prefix = f"lottery{number}_" if len(lotteries) > 1 else ""
        pictures = [make_picture(draw, figures) for draw in figures_of_levels(lottery, prefix)]
        yield Part(
            title=f"Iterative pruning, {lottery.name}",
            messages=results_of_levels(lottery),
            missing=[(lottery.name, lottery.missing)] if lottery.missing else [],
            pictures=[picture for picture in pictures if picture],
            tables=tables_of_levels(lottery, prefix),
        )


def _parts_of_runs(runs: Sequence[RunFiles], figures: Path) -> list[Part]:
    comparisons = group_comparable_runs(runs)
    several = len(comparisons) > 1
    prefixes = [f"s{i + 1}_" if several else "" for i in range(len(comparisons))]
    with style():
        drawing = [
            list(figures_of(comparison, prefix)) for comparison, prefix in zip(comparisons, prefixes, strict=True)
        ]
        draws = [draw for some in drawing for draw in some]
        progress = iter(track(draws, description="figures", disable=not shows_bars()))
        pictures = [[make_picture(next(progress), figures) for _ in some] for some in drawing]
    parts = [
        Part(
            title=each.title,
            names=each.names,
            colours=[run_style(k)["color"] for k in range(len(each.runs))],
            messages=messages(each),
            missing=[(name, run.missing) for name, run in zip(each.names, each.runs, strict=True) if run.missing],
            pictures=[picture for picture in some if picture],
            tables=_tables(each, prefix),
        )
        for each, prefix, some in zip(comparisons, prefixes, pictures, strict=True)
    ]
    if several:
        titles = "; ".join(each.title for each in comparisons)
        separate = f"These runs differ in model or data set and are shown separately: {titles}"
        parts.insert(0, Part("What is compared", messages=[separate]))
    if paper := paper_table(runs):
        table = Table("paper", "Test accuracy (%) and communication, published and ours", paper, _OF_PAPER)
        parts.append(Part("The paper's table", tables=[table]))
    return parts


def write_tables(parts: Sequence[Part], directory: Path) -> None:
    """Write each table as CSV and Markdown."""
    for table in (table for part in parts for table in part.tables):
        write_table(directory / f"{table.name}.csv", table.columns, table.rows)
        write_atomically(directory / f"{table.name}.md", markdown(table))


def make_picture(draw: Callable[[], Chart | None], directory: Path) -> Picture | None:
    """Draw a figure, and write its files into the directory; None where there is nothing to draw."""
    chart = draw()
    if chart is None:
        return None
    rendered = chart.render()
    (directory / f"{chart.name}.svg").write_text(rendered.svg, encoding="utf-8")
    (directory / f"{chart.name}.png").write_bytes(rendered.png)
    width = round(72 * chart.figure.get_figwidth())
    return Picture(
        chart.name, chart.title, chart.caption, rendered.inline, rendered.values, width, chart.run, chart.wide
    )


def _tables(comparison: Comparison, prefix: str) -> list[Table]:
    own = own_table(comparison)
    improvement = " improvement: bytes of a GPipe run here with as many stages as the run has workers, over the run's."
    gpipe = improvement if any(row["improvement"] for row in own) else ""
    tickets = (
        "Accuracies are those of the last ticket, rewound and retrained: mean ± sample deviation over seeds, in %."
    )
    best = "Accuracies are those of the last round. That of the best round was chosen by test images, and is too high."
    rule = (
        "Epochs after which a curve differs from its last value by at most 10 % of its change from first to last; "
        "between two epochs if what was measured is too far apart to say when."
    )
    tables = [
        Table(f"{prefix}runs", "Runs", overview_table(comparison), best),
        Table(f"{prefix}results", "Results, as the paper lays them out", own, tickets + gpipe),
    ]
    if settling := settling_table(comparison):
        tables.append(Table(f"{prefix}settling", "When distance and loss have settled", settling, rule))
    if retrained := _retrainings(comparison):
        tables.append(Table(f"{prefix}retrainings", "Retrainings", retrained, best))
    for k, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True)):
        if run.costs:
            tables.append(
                Table(f"{prefix}run{k + 1}_cost", f"{name}: what the setting costs by every method", run.costs)
            )
    return tables


def _retrainings(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "run": name,
            "ticket": row["ticket"],
            "epoch": None if row["ticket_epoch"] is None else round(row["ticket_epoch"], 2),
            "mode": row["mode"] + (f" to {row['rewind_to']}" if row["rewind_to"] else ""),
            "groups": "paper" if (row.get("rules") or "").split("-")[0] == "paper" else "all",
            "epochs retrained": round(row["epochs"], 2),
            "seeds": row["seeds"],
            "test accuracy, %": round(100 * row["test_accuracy_mean"], 2),
            "deviation": None if row["test_accuracy_std"] is None else round(100 * row["test_accuracy_std"], 2),
            "best round, %": _percent(row.get("test_accuracy_best_mean")),
            "parameters": row["parameters"],
            "FLOPs an image": row["flops_per_image"],
        }
        for name, run in zip(comparison.names, comparison.runs, strict=True)
        for row in run.retrained
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def figures_of(comparison: Comparison, prefix: str) -> Iterator[Callable[[], Chart | None]]:
    """Yield a function that draws each figure, in the order of the page; names of files start with `prefix`."""
    runs = list(zip(range(len(comparison.runs)), comparison.names, comparison.runs, strict=True))
    yield partial(lines.settling, f"{prefix}settling", comparison)
    for cost in ("bytes", "images", "seconds"):
        yield partial(lines.accuracy_against, f"{prefix}accuracy_by_{cost}", comparison, cost)
    yield partial(pareto.accuracy_by_setting, f"{prefix}accuracy_by_setting", comparison)
    yield partial(ticket_lines.tickets_by_snapshot, f"{prefix}tickets_by_snapshot", comparison)
    for k, name, run in runs:
        yield partial(ticket_lines.tickets_and_controls, f"{prefix}run{k + 1}_controls", k, name, run)
    yield partial(ticket_lines.kept_overlap, f"{prefix}overlap", comparison)
    if bars := [(k, name, split) for k, name, run in runs if (split := seconds_a_round(run))]:
        yield partial(lines.time_of_a_round, f"{prefix}time_of_a_round", bars)
    for k, name, run in runs:
        if run.search and len(run.search.rounds) > 1:
            yield partial(lines.distance_by_stage, f"{prefix}run{k + 1}_distance", k, name, run)
            yield partial(heat.distance_to_ticket, f"{prefix}run{k + 1}_to_ticket", k, name, run.search)
    for k, name, run in runs:
        if run.search and len(run.search.rounds) > 1:
            yield partial(heat.distance_maps, f"{prefix}run{k + 1}_maps", k, name, run.search)
            ratio = kept_ratio(run.search.options["ratios"])
            if kept := run.kept(ratio):
                yield partial(heat.kept_filters, f"{prefix}run{k + 1}_kept", k, name, run.search, ratio, kept)


def kept_ratio(ratios: list[float]) -> float:
    """Return the searched ratio whose kept filters are drawn: the nearest to a half."""
    return min(ratios, key=lambda ratio: abs(ratio - 0.5))
