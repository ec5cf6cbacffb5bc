"""Which runs of a report can be compared: runs of the same model on the same data set."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loft_jax.errors import format_literal, format_value
from loft_jax.models import published_width
from loft_jax.report.run_files import RunFiles

_LONGEST_NAME = 24


@dataclass(frozen=True)
class Comparison:
    """Runs that are compared: of the same model, on the same data set.

    Attributes:
      title: human-readable name of the model and the data set.
      runs: the runs.
      names: one for each run, all different.
    """

    title: str
    runs: list[RunFiles]
    names: list[str]


def group_comparable_runs(runs: Iterable[RunFiles]) -> list[Comparison]:
    """Group the runs that can be compared, in the order given."""
    by_key: dict[Any, list[RunFiles]] = {}
    for run in runs:
        by_key.setdefault(comparison_key(run), []).append(run)
    comparisons = []
    for (model, width, stem, options, data), some in by_key.items():
        details = [f"width {width}"] if width else []
        details += [f"{stem} stem"] if stem != "cifar" else []
        details += [options] if options and options != "{}" else []
        title = " ".join([model, *([f"({', '.join(details)})"] if details else []), "on", data])
        comparisons.append(Comparison(title, some, _name_runs(some)))
    return comparisons


def comparison_key(run: RunFiles) -> tuple[Any, ...]:
    """Return what two runs must share so that their accuracies and filter groups can be compared."""
    model = run.config.model
    width = None if model.width == published_width(model.name) else model.width
    options = format_literal(model.options) if model.own or model.options else None
    return (model.name, width, model.stem, options, run.data_name)


def _name_runs(runs: Sequence[RunFiles]) -> list[str]:
    methods = [run.config.method for run in runs]
    names = []
    for run, method in zip(runs, methods, strict=True):
        directory = format_value(run.directory.path.resolve().name)
        if len(directory) > _LONGEST_NAME:
            directory = f"{directory[: _LONGEST_NAME // 2]}…{directory[-_LONGEST_NAME // 2 :]}"
        name = method if methods.count(method) == 1 else f"{method} ({directory})"
        # Directories of the same name in different places.
        taken = sum(re.sub(r" #\d+$", "", other) == name for other in names)
        names.append(f"{name} #{taken + 1}" if taken else name)
    return names
