"""The tables of a report, computed from the files of runs: the paper's table, the runs, when curves settle."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loft_jax.paper import PAPER_ROWS, RATIOS, PaperRow
from loft_jax.report.comparison import Comparison, comparison_key
from loft_jax.report.curves import (
    Settling,
    describe_reference,
    measured_seconds,
    moved_bytes,
    settling_of,
    stage_distances,
    training_curve,
)
from loft_jax.report.run_files import RunFiles, last_ticket_results, most_pruned_first
from loft_jax.tickets import Pruning

Row = dict[str, Any]

_SHOWN_CLASSES = 10


def percent(row: Row | None) -> str | None:
    """Format a retraining's accuracy in percent, with its deviation if there are several seeds; None for None."""
    if row is None:
        return None
    spread = row["test_accuracy_std"]
    return f"{100 * row['test_accuracy_mean']:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def paper_table(runs: Sequence[RunFiles]) -> list[Row]:
    """Return the rows of the paper's table to which a run belongs: published values beside those of the run.

    A run belongs to a row if it has the row's model, at the published width, the row's data set and its method. A cell
    is None if nothing was published, or nothing was run.
    """
    rows = []
    for name, paper in PAPER_ROWS.items():
        for method, gigabytes in paper.published.items():
            ours = next((run for run in runs if _matches(run, paper) and run.config.method == method), None)
            if ours is None:
                continue
            tickets = last_ticket_results(ours, "rewind")
            published = dict(zip(RATIOS, paper.accuracies[method], strict=True))
            cells: Row = {"setting": name, "method": method, "no-prune, published": paper.no_prune}
            cells["no-prune, ours"] = percent(_unpruned(tickets))
            for pruning in map(Pruning, RATIOS):
                cells[f"{pruning.removed}, published"] = published[pruning.ratio]
                cells[f"{pruning.removed}, ours"] = percent(tickets.get(pruning))
            cells["GB moved, published"] = gigabytes
            cells["GB moved, ours"] = _gigabytes(moved_bytes(ours), 3)
            cells["improvement, published"] = paper.improvements.get(method)
            cells["run"] = _state(ours)
            rows.append(cells)
    return rows


def own_table(comparison: Comparison) -> list[Row]:
    """Return the runs of a comparison in the layout of the paper's table; a cell is None if nothing was run."""
    gpipe = {run.config.method: moved_bytes(run) for run in comparison.runs if run.config.method.startswith("GPipe-")}
    tickets = [last_ticket_results(run, "rewind") for run in comparison.runs]
    drawn = (pruning for found in tickets for pruning in found if pruning.ratio)
    prunings = most_pruned_first({*map(Pruning, RATIOS), *drawn})
    rows = []
    for run, name, found in zip(comparison.runs, comparison.names, tickets, strict=True):
        moved = moved_bytes(run)
        against = gpipe.get(f"GPipe-{run.config.loft.workers}") if run.config.gpipe.stages is None else None
        rows.append(
            {
                "method": name,
                "no-prune": percent(_unpruned(found)),
                **{pruning.removed: percent(found.get(pruning)) for pruning in prunings},
                "GB moved": _gigabytes(moved, 4),
                "improvement": f"{against / moved:.2f}x" if against and moved else None,
                "run": _state(run),
            }
        )
    return rows


def overview_table(comparison: Comparison) -> list[Row]:
    """Return what each run is, and its state."""
    rows = []
    for run, name in zip(comparison.runs, comparison.names, strict=True):
        losses, accuracies = training_curve(run, "train/loss")[1], training_curve(run, "test/accuracy")[1]
        seconds = measured_seconds(run)
        rows.append(
            {
                "run": name,
                "directory": str(run.directory.path),
                "classes": _classes(run),
                "state": _state(run),
                "rounds": run.rows[-1]["round"] if run.rows else 0,
                "epochs": round(max(run.epochs.values(), default=0.0), 2),
                "test accuracy, %": round(100 * float(accuracies[-1]), 2) if len(accuracies) else None,
                "best round, %": round(100 * float(max(accuracies)), 2) if len(accuracies) else None,
                "train loss": round(float(losses[-1]), 4) if len(losses) else None,
                "images": (run.rows[-1]["round"] if run.rows else 0) * run.config.images_per_round,
                "GB moved": _gigabytes(moved_bytes(run), 4),
                "seconds": None if seconds is None else round(seconds, 1),
                "seed": run.config.seed,
                "config": run.config.hash(),
            }
        )
    return rows


def settling_table(comparison: Comparison) -> list[Row]:
    """Return when the filter distance and the training loss of each run settle, in epochs, by the same rule.

    An epoch is a number; where snapshots are too far apart for one, the text says between which.
    """
    rows = []
    for run, name in zip(comparison.runs, comparison.names, strict=True):
        if run.search:
            means = stage_distances(run.search)
            start = means["mean"][0]
            distance, loss = _settling_of_both(run)
            rows.append({"run": name, "distance from": describe_reference(run.search), "distance": distance})
            rows[-1] |= {"loss": loss, "distance of the initialisation": start}
            rows[-1] |= {f"distance, {stage}": settling_of(run.search.epochs, y) for stage, y in means.items()}
            rows[-1].pop("distance, mean")
    return [{key: _round(value) for key, value in row.items()} for row in rows]


def _settling_of_both(run: RunFiles) -> tuple[Settling | None, Settling | None]:
    """Return when a run's mean filter distance and its training loss settle."""
    loss = settling_of(*training_curve(run, "train/loss"))
    return (settling_of(run.search.epochs, stage_distances(run.search)["mean"]) if run.search else None), loss


def messages(comparison: Comparison) -> list[str]:
    """Return the results of a comparison, a sentence each."""
    sentences = []
    for run, name in zip(comparison.runs, comparison.names, strict=True):
        distance, loss = _settling_of_both(run)
        if run.search and distance and loss:
            what = f"the filter distance from {describe_reference(run.search)}"
            text = f"{name}: {what} settles {_epochs(distance)}, {{}} the loss {_epochs(loss)}"
            if order := distance.order(loss):
                sentences.append(text.format(order))
            else:
                sentences.append(text.format("and") + "; they are too close to each other to say which is first")
    for run, name in zip(comparison.runs, comparison.names, strict=True):
        tickets, controls = last_ticket_results(run, "rewind"), last_ticket_results(run, "random")
        for pruning in (pruning for pruning in tickets if pruning.ratio):
            reached, against = percent(tickets[pruning]), controls.get(pruning)
            text = f"{name}: with {pruning.share} of the filters removed the ticket reaches {reached} %"
            sentences.append(text + (f", random filters {percent(against)} %" if against else ""))
    return sentences


def _epochs(settling: Settling) -> str:
    if settling.at is not None:
        return f"at epoch {settling}"
    return f"between epochs {settling.after:.4g} and {settling.by:.4g} (too far apart to say when)"


def _classes(run: RunFiles) -> str | None:
    """Name the first classes of a run's data, as its data.json has them; their number alone if they have no names."""
    identity = run.directory.data_identity() or {}
    names, count = identity.get("class_names"), identity.get("classes")
    if not isinstance(names, list) or not names:
        return None if count is None else str(count)
    more = ", ..." if len(names) > _SHOWN_CLASSES else ""
    return f"{len(names)}: {', '.join(map(str, names[:_SHOWN_CLASSES]))}{more}"


def _unpruned(tickets: Mapping[Pruning, Row]) -> Row | None:
    return next((row for pruning, row in tickets.items() if not pruning.ratio), None)


def _gigabytes(size: float | None, digits: int) -> float | None:
    return None if size is None else round(size / 1e9, digits)


def _state(run: RunFiles) -> str:
    return "finished" if run.summary else "unfinished"


def _matches(run: RunFiles, paper: PaperRow) -> bool:
    stem = "imagenet" if paper.data == "imagenet2012" else "cifar"
    return comparison_key(run) == (paper.model, None, stem, None, paper.data)


def _round(value: Any) -> Any:
    if isinstance(value, Settling):
        return str(value) if value.at is None else round(value.at, 2)
    return round(float(value), 2) if isinstance(value, float) and math.isfinite(value) else value
