"""The report as one HTML file, which contains figures, tables and their script and loads nothing else.

The template escapes all text from runs.
"""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from loft_jax import __version__

Row = dict[str, Any]
_EMPTY = "-"


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
      svg: an SVG element, which needs no escaping.
      values: texts to show, and where; see `page.js`.
      width: at which its labels are as large as they were drawn, in CSS pixels.
      run: number, in its part, of the run that it shows; None if it shows several.
    """

    name: str
    title: str
    caption: str
    svg: str
    values: Any
    width: int
    run: int | None
    wide: bool


@dataclass(frozen=True)
class Table:
    """A table of the page, and of the files beside it.

    Attributes:
      name: name of its files.
      rows: all with the same keys, the columns; None is an empty cell.
      note: how to read it.
    """

    name: str
    title: str
    rows: Sequence[Row]
    note: str = ""

    @property
    def columns(self) -> list[str]:
        """The column headings."""
        return list(self.rows[0])

    @property
    def shown(self) -> list[str]:
        """The headings of the columns that are not empty."""
        return [column for column in self.columns if any(cell(row[column]) != _EMPTY for row in self.rows)]


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
      names, colours: names of the runs, and their colours in CSS.
      messages: results, a sentence each.
      missing: pairs of a run's name and what it lacks.
      commands: that make it, a line each.
    """

    title: str
    names: Sequence[str] = ()
    colours: Sequence[str] = ()
    messages: Sequence[str] = ()
    missing: Sequence[tuple[str, Sequence[str]]] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    commands: Sequence[str] = ()


def render(title: str, parts: Sequence[Part]) -> str:
    """Return the whole HTML file."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"svg": Markup, "json": _json, "cell": cell}
    assets = files("loft_jax.report") / "assets"
    style, script = (Markup(assets.joinpath(name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    template = environment.from_string(assets.joinpath("report.html.jinja").read_text(encoding="utf-8"))
    return template.render(title=title, parts=parts, style=style, script=script, origin=origin())


def origin() -> str:
    """Say when, by which versions and on which machine a page is made."""
    day, cores = datetime.date.today().isoformat(), os.cpu_count()
    versions = f"loft_jax {__version__}, jax {version('jax')}, Python {platform.python_version()}"
    return f"Made on {day} by {versions}, on {platform.machine()} with {cores} cores"


def markdown(table: Table) -> str:
    """Return the table as Markdown."""
    lines = [table.columns, ["---"] * len(table.columns)]
    lines += [[cell(row[column]) for column in table.columns] for row in table.rows]
    return "".join("| " + " | ".join(_escape(text) for text in line) + " |\n" for line in lines)


def cell(value: Any) -> str:
    """Format a value for a person to read; a dash for None and for empty text."""
    if value in (None, ""):
        return _EMPTY
    return f"{value:,.10g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _json(value: Any) -> Markup:
    # Only "</" and "<!--" could end a script element.
    return Markup(json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c"))
