"""What a report says in numbers, computed from the files of runs: when curves settle, what accuracy cost, the table."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loft_jax.messages import shown
from loft_jax.models import published_width
from loft_jax.published import RATIOS, SETTINGS, Setting
from loft_jax.run_files import RunFiles, SearchFiles
from loft_jax.summary import PHASES
from loft_jax.ticket import NORMS, SCOPES, Pruning

Row = dict[str, Any]
SETTLED_WITHIN = 0.1
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Section:
    """Runs that can be held against each other: of one model, on one data set.

    Attributes:
      title: for people.
      names: one for each run, all different.
    """

    title: str
    runs: list[RunFiles]
    names: list[str]


def sections_of(runs: Iterable[RunFiles]) -> list[Section]:
    """The runs by what can be compared, in the order given."""
    by_setting: dict[Any, list[RunFiles]] = {}
    for run in runs:
        by_setting.setdefault(_setting(run), []).append(run)
    sections = []
    for (model, width, stem, data), some in by_setting.items():
        details = [f"width {width}"] if width else []
        details += [f"{stem} stem"] if stem != "cifar" else []
        title = " ".join([model, *([f"({', '.join(details)})"] if details else []), "on", data])
        sections.append(Section(title, some, _names(some)))
    return sections


def _setting(run: RunFiles) -> tuple[Any, ...]:
    """What two runs must share for their accuracies and filter groups to be held against each other."""
    model, data = run.config.model, run.config.data
    width = None if model.width == published_width(model.name) else model.width
    return (model.name, width, model.stem, data.name)


def _names(runs: Sequence[RunFiles]) -> list[str]:
    methods = [run.config.method for run in runs]
    names = []
    for run, method in zip(runs, methods, strict=True):
        directory = shown(run.directory.path.resolve().name)
        if len(directory) > _LONGEST_NAME:
            directory = f"{directory[: _LONGEST_NAME // 2]}…{directory[-_LONGEST_NAME // 2 :]}"
        name = method if methods.count(method) == 1 else f"{method} ({directory})"
        # Directories of one name in different places.
        taken = sum(re.sub(r" #\d+$", "", other) == name for other in names)
        names.append(f"{name} #{taken + 1}" if taken else name)
    return names


def settled_at(x: Any, y: Any, within: float = SETTLED_WITHIN) -> float | None:
    """The first x from which on y stays within a share of its start-to-end range around its end.

    Args:
      x, y: [T]; places where either is not finite are left out.

    Returns:
      None where y ends where it began, or has fewer than three values.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(y) < 3 or y[0] == y[-1]:
        return None
    outside = np.flatnonzero(np.abs(y - y[-1]) > within * abs(y[0] - y[-1]))
    return float(x[outside[-1] + 1])


def stage_distances(search: SearchFiles) -> dict[str, np.ndarray]:
    """Stage name -> [T] the mean over its groups of the normalised distance to the reference; "mean": over all."""
    stages: dict[str, list[np.ndarray]] = {}
    for name, distances in search.distances.items():
        stages.setdefault(name.split("/")[0], []).append(distances)
    return {name: np.mean(some, axis=0) for name, some in stages.items()} | {
        "mean": np.mean(list(search.distances.values()), axis=0)
    }


def training_curve(run: RunFiles, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of a metric, where it was measured."""
    points = [(row["epoch"], row[key]) for row in run.rows if "epoch" in row and row.get(key) is not None]
    return np.array([x for x, _ in points]), np.array([y for _, y in points])


def accuracy_by_cost(run: RunFiles) -> list[Row]:
    """A row for each evaluation: accuracy, and images, bytes, and seconds of training up to there."""
    rows, moved, seconds = [], 0.0, 0.0
    for row in run.rows:
        moved += row.get("bytes_on_the_wire", 0.0)
        seconds += sum(row.get(f"seconds/{phase}", 0.0) for phase in ("train", "sync"))
        if row.get("test/accuracy") is not None:
            images = row["round"] * run.config.images_per_round
            rows.append({"accuracy": row["test/accuracy"], "images": images, "bytes": moved, "seconds": seconds})
    return rows


def seconds_a_round(run: RunFiles) -> dict[str, float]:
    """Phase -> its mean seconds over the trained rounds, compilation left out, which is once; {} before the first."""
    trained = [row for row in run.rows if "train/loss" in row]
    if not trained:
        return {}
    return {
        phase: sum(row.get(f"seconds/{phase}", 0.0) for row in trained) / len(trained)
        for phase in PHASES
        if phase != "compile"
    }


def moved_bytes(run: RunFiles) -> float:
    """What all devices together have sent in training so far."""
    return sum(row.get("bytes_on_the_wire", 0.0) for row in run.rows)


def pruning_of(row: Row) -> Pruning:
    """How the ticket of a retraining was drawn."""
    return Pruning(row["ratio"], row["scope"], row["norm"])


def of_the_last_ticket(run: RunFiles, mode: str) -> dict[Pruning, Row]:
    """The retraining from round 0 of the latest ticket of every pruning, in a mode; the most pruned first."""
    found: dict[Pruning, Row] = {}
    for row in run.retrained:
        if row["mode"] == mode and not row["rewind_to"]:
            before = found.get(pruning_of(row))
            if before is None or row["ticket_round"] > before["ticket_round"]:
                found[pruning_of(row)] = row
    return {pruning: found[pruning] for pruning in most_pruned_first(found)}


def most_pruned_first(prunings: Iterable[Pruning]) -> list[Pruning]:
    """Prunings by their ratio; of one ratio the paper's first."""
    return sorted(prunings, key=lambda p: (-p.ratio, p.scope != SCOPES[0], p.norm != NORMS[0]))


def percent(row: Row | None) -> str | None:
    """A retraining's accuracy in percent, with its deviation over seeds where there are several; None for none."""
    if row is None:
        return None
    spread = row["test_accuracy_std"]
    return f"{100 * row['test_accuracy_mean']:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def paper_table(runs: Sequence[RunFiles]) -> list[Row]:
    """The paper's table, what was published beside what these runs gave; a cell is None where nothing was run.

    A run belongs to a row where model, data set and method are the row's, at the published width.
    """
    rows = []
    for name, setting in SETTINGS.items():
        for method, gigabytes in setting.published.items():
            ours = next((run for run in runs if _belongs(run, setting) and run.config.method == method), None)
            tickets = of_the_last_ticket(ours, "rewind") if ours else {}
            published = dict(zip(RATIOS, setting.accuracies[method], strict=True))
            cells: Row = {"setting": name, "method": method, "no-prune, published": setting.no_prune}
            cells["no-prune, ours"] = percent(_unpruned(tickets))
            for pruning in map(Pruning, RATIOS):
                cells[f"{pruning.removed}, published"] = published[pruning.ratio]
                cells[f"{pruning.removed}, ours"] = percent(tickets.get(pruning))
            cells["GB moved, published"] = gigabytes
            cells["GB moved, ours"] = round(moved_bytes(ours) / 1e9, 3) if ours else None
            cells["improvement, published"] = setting.improvements.get(method)
            cells["run"] = _state(ours)
            rows.append(cells)
    return rows


def own_table(section: Section) -> list[Row]:
    """A section's runs in the layout of the paper's table; None where nothing was run."""
    gpipe = {run.config.method: moved_bytes(run) for run in section.runs if run.config.method.startswith("GPipe-")}
    tickets = [of_the_last_ticket(run, "rewind") for run in section.runs]
    drawn = (pruning for found in tickets for pruning in found if pruning.ratio)
    prunings = most_pruned_first({*map(Pruning, RATIOS), *drawn})
    rows = []
    for run, name, found in zip(section.runs, section.names, tickets, strict=True):
        moved = moved_bytes(run)
        against = gpipe.get(f"GPipe-{run.config.loft.workers}") if run.config.gpipe.stages is None else None
        rows.append(
            {
                "method": name,
                "no-prune": percent(_unpruned(found)),
                **{pruning.removed: percent(found.get(pruning)) for pruning in prunings},
                "GB moved": round(moved / 1e9, 4),
                "improvement": f"{against / moved:.2f}x" if against and moved else None,
                "run": _state(run),
            }
        )
    return rows


def overview_table(section: Section) -> list[Row]:
    """What each run is and where it stands."""
    rows = []
    for run, name in zip(section.runs, section.names, strict=True):
        losses, accuracies = training_curve(run, "train/loss")[1], training_curve(run, "test/accuracy")[1]
        seconds = sum(value for row in run.rows for key, value in row.items() if key.startswith("seconds/"))
        rows.append(
            {
                "run": name,
                "directory": str(run.directory.path),
                "state": _state(run),
                "rounds": run.rows[-1]["round"] if run.rows else 0,
                "epochs": round(max(run.epochs.values(), default=0.0), 2),
                "test accuracy, %": round(100 * float(accuracies[-1]), 2) if len(accuracies) else None,
                "train loss": round(float(losses[-1]), 4) if len(losses) else None,
                "images": (run.rows[-1]["round"] if run.rows else 0) * run.config.images_per_round,
                "GB moved": round(moved_bytes(run) / 1e9, 4),
                "seconds": round(seconds, 1),
                "seed": run.config.seed,
                "config": run.config.hash(),
            }
        )
    return rows


def settling_table(section: Section) -> list[Row]:
    """When the filter distance and the training loss of each run have settled, in epochs, by one rule."""
    rows = []
    for run, name in zip(section.runs, section.names, strict=True):
        loss = settled_at(*training_curve(run, "train/loss"))
        if run.search:
            means = stage_distances(run.search)
            distance = settled_at(run.search.epochs, means["mean"])
            start = means["mean"][0]
            rows.append({"run": name, "distance": distance, "loss": loss, "distance of the initialisation": start})
            rows[-1] |= {f"distance, {stage}": settled_at(run.search.epochs, y) for stage, y in means.items()}
            rows[-1].pop("distance, mean")
    return [{key: _rounded(value) for key, value in row.items()} for row in rows]


def messages(section: Section) -> list[str]:
    """What a section shows, a sentence each."""
    said = []
    for row in settling_table(section):
        distance, loss = row["distance"], row["loss"]
        if distance is not None and loss is not None:
            order = "before" if distance < loss else "after" if distance > loss else "as does"
            said.append(f"{row['run']}: the filter distance settles at epoch {distance}, {order} the loss at {loss}")
    for run, name in zip(section.runs, section.names, strict=True):
        tickets, controls = of_the_last_ticket(run, "rewind"), of_the_last_ticket(run, "random")
        for pruning in (pruning for pruning in tickets if pruning.ratio):
            reached, against = percent(tickets[pruning]), controls.get(pruning)
            text = f"{name}: with {pruning.share} of the filters removed the ticket reaches {reached} %"
            said.append(text + (f", random filters {percent(against)} %" if against else ""))
    return said


def _unpruned(tickets: Mapping[Pruning, Row]) -> Row | None:
    return next((row for pruning, row in tickets.items() if not pruning.ratio), None)


def _state(run: RunFiles | None) -> str:
    if run is None:
        return "not run"
    return "finished" if run.summary else "unfinished"


def _belongs(run: RunFiles, setting: Setting) -> bool:
    stem = "imagenet" if setting.data == "imagenet2012" else "cifar"
    return _setting(run) == (setting.model, None, stem, setting.data)


def _rounded(value: Any) -> Any:
    return round(float(value), 2) if isinstance(value, float) and math.isfinite(value) else value
