"""Which runs of a report can be compared: those of one model, on one data set."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loft_jax.errors import format_value
from loft_jax.models import published_width
from loft_jax.report.run_files import RunFiles

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
        directory = format_value(run.directory.path.resolve().name)
        if len(directory) > _LONGEST_NAME:
            directory = f"{directory[: _LONGEST_NAME // 2]}…{directory[-_LONGEST_NAME // 2 :]}"
        name = method if methods.count(method) == 1 else f"{method} ({directory})"
        # Directories of one name in different places.
        taken = sum(re.sub(r" #\d+$", "", other) == name for other in names)
        names.append(f"{name} #{taken + 1}" if taken else name)
    return names
