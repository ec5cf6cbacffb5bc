"""One figure of a report: drawn once, saved as PNG and SVG, and put into the page with values to hover over.

Colours are those of Okabe and Ito, and line styles and markers differ too, so that figures can be read in grey and by
the colour-blind. The background is transparent; a page may recolour INK and FAINT.
"""

import base64
import io
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#333334", "#c9c9cb"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vP"
DASHES = ("-", "--", "-.", ":")
# Darker is smaller, also in grey and for the colour-blind.
COLOUR_MAP = "cividis"
FONT = 11
_DPI = 150
# Letters of a legend that fit side by side, and the height of its line in inches.
_LETTERS, _LINE = 42, 0.22
_STYLE = {
    # A figure of half a page has about as many points as a phone has pixels across: its labels are then this high.
    "font.size": FONT,
    "font.family": "DejaVu Sans",
    "axes.facecolor": "none",
    "axes.titlesize": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": FONT,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "text.parse_math": False,  # names of runs are not formulas
    "svg.fonttype": "none",
    "svg.image_inline": True,
    **{f"{what}color": INK for what in ("axes.edge", "axes.label", "xtick.", "ytick.", "text.")},
    "axes.titlecolor": INK,
    "legend.labelcolor": INK,
}


def style() -> AbstractContextManager[Any]:
    """Set the look of figures, in a context where they are drawn and saved. Matplotlib's own settings do not change."""
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    # The user's own settings change no figure.
    return matplotlib.rc_context({**defaults, **_STYLE})


def run_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a run, by its number in its comparison (from 0); different for the first 24."""
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": dashes}


@dataclass(frozen=True)
class Rendered:
    """A figure as files and as a piece of the page.

    Attributes:
      svg, png: contents of the files.
      inline: SVG element for the page, with the page's colours in place of INK and FAINT; artists of run K have the
        class run-K.
      values: texts to show, and where, in units of the SVG's viewBox; see `page.js`.
    """

    svg: str
    png: bytes
    inline: str
    values: dict[str, Any]


class Chart:
    """A figure to draw on, which records the text to show at each place.

    Attributes:
      name: name of its files.
      title, caption: for the page; the caption says what the figure shows and how to read it.
      run: number, in its comparison, of the run that it shows; None if it shows several.
      wide: whether it needs more than half a page.
    """

    def __init__(
        self,
        name: str,
        title: str,
        caption: str,
        *,
        size: tuple[float, float] = (4.5, 3.2),
        run: int | None = None,
        wide: bool = False,
    ):
        self.name, self.title, self.caption, self.run, self.wide = name, title, caption, run, wide
        self.figure = Figure(figsize=size, dpi=72, layout="constrained", facecolor="none")
        self._points: list[tuple[Axes, Any, Any, Sequence[str], int | None]] = []
        self._cells: list[tuple[Axes, np.ndarray, dict[str, Any]]] = []

    def name_lines(self) -> None:
        """Name what has a label above the axes, where it hides nothing; nothing if there is only one."""
        named = [ax.get_legend_handles_labels() for ax in self.figure.axes]
        entries = {label: handle for handles, labels in named for handle, label in zip(handles, labels, strict=True)}
        if len(entries) < 2:
            return
        columns = max(1, min(3, _LETTERS // (max(map(len, entries)) + 4)))
        rows = -(-len(entries) // columns)
        self.figure.set_figheight(self.figure.get_figheight() + _LINE * rows)
        self.figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside upper left",
            ncols=columns,
            columnspacing=1,
            borderaxespad=0,
        )

    def note_points(self, axes: Axes, x: Any, y: Any, texts: Sequence[str], run: int | None = None) -> None:
        """Show `texts[i]` near (x[i], y[i]), in data coordinates, while the run is visible."""
        self._points.append((axes, x, y, texts, run))

    def note_cells(
        self, axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], text: str
    ) -> None:
        """Show a text over each cell of an image.

        Args:
          values: [rows, columns], drawn with row 0 at the bottom.
          rows, columns: labels of the rows and columns.
          text: text with {row}, {column} and {value} in it.
        """
        self._cells.append((axes, values, {"rows": list(rows), "columns": list(columns), "text": text}))

    def render(self) -> Rendered:
        """Lay out and save the figure. Nothing can be drawn on it afterwards."""
        with warnings.catch_warnings():
            # The font of the PNG lacks some glyphs that a browser has.
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            return self._save()

    def _save(self) -> Rendered:
        figure = self.figure
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # otherwise every file would be laid out again
        values = {"points": self._place_points(), "cells": self._place_cells()}
        text, picture = io.StringIO(), io.BytesIO()
        # Ids in the file are hashed with this salt: the same every time, but different for each chart.
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(picture, format="png", dpi=_DPI, facecolor="white")
        return Rendered(text.getvalue(), picture.getvalue(), _make_inline(text.getvalue(), self.title), values)

    def _place_points(self) -> list[list[Any]]:
        placed = []
        for axes, x, y, texts, run in self._points:
            for (px, py), text in zip(self._pixels(axes, np.column_stack([x, y])), texts, strict=True):
                if np.isfinite(px) and np.isfinite(py):
                    placed.append([round(px, 1), round(py, 1), text, run])
        return placed

    def _place_cells(self) -> list[dict[str, Any]]:
        placed = []
        for axes, values, facts in self._cells:
            (left, bottom), (right, top) = self._pixels(
                axes, np.array([(-0.5, -0.5), (values.shape[1] - 0.5, values.shape[0] - 0.5)])
            )
            largest = float(np.nanmax(values, initial=0)) or 1.0
            levels = np.nan_to_num(255 * values / largest).round().astype(np.uint8)
            box = [round(float(edge), 1) for edge in (left, top, right, bottom)]
            content = base64.b64encode(levels.tobytes()).decode()
            placed.append({**facts, "box": box, "largest": largest, "levels": content})
        return placed

    def _pixels(self, axes: Axes, data: np.ndarray) -> np.ndarray:
        """Convert data coordinates [k, 2] to those of the SVG, whose y axis points down."""
        height = self.figure.get_size_inches()[1] * 72
        return axes.transData.transform(data) * (1, -1) + (0, height)


def show_with_run(run: int, *artists: Artist) -> None:
    """Show and hide these artists together with the run of this number in its comparison."""
    for artist in artists:
        artist.set_gid(f"run-{run}")


def _make_inline(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="run-(\d+)"', r' class="run-\1"', svg)
    # Remove ids that nothing refers to: they would occur in the page many times.
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
