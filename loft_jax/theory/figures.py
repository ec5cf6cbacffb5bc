"""Figures of the experiment on Theorem 1, from its rows."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from loft_jax.theory.rows import Row

# Colours of Okabe and Ito, which colour-blind people can distinguish.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
GREY = "#555555"
LEFT = "left side of the theorem (a squared distance)"


def draw_figures(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return file name -> content: each figure as PNG and as SVG."""
    figures = {"width": width_figure, "masks": masks_figure, "steps": steps_figure, "lazy": lazy_figure}
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    # The user's own settings change no figure.
    with matplotlib.rc_context(defaults):
        return {
            f"{name}.{kind}": _encode(figure(rows), kind) for name, figure in figures.items() for kind in ("png", "svg")
        }


def width_figure(rows: Sequence[Row]) -> Figure:
    """Draw the left side against m with its limit, and its excess over the limit."""
    figure, (whole, above) = _panels()
    for sweep, colour, marker, label in (
        ("filters", BLUE, "o", "random masks"),
        ("disjoint", ORANGE, "s", "disjoint groups"),
    ):
        points = _select(rows, sweep)
        _draw_measured(whole, points, "filters", "left", label, colour, marker)
        _draw_line(whole, points, "filters", "limit", f"{label}: limit", colour, "--")
        _draw_measured(above, points, "filters", "excess", label, colour, marker)
    first = [row for row in _select(rows, "filters") if (row["excess"] or 0) > 0][:1]
    for power, style, label in ((-0.25, ":", r"$m^{-1/4}$, as the bound allows"), (-1, "-.", r"$m^{-1}$")):
        if first:
            at = [row["filters"] for row in _select(rows, "filters")]
            above.plot(at, [first[0]["excess"] * (m / at[0]) ** power for m in at], style, color=GREY, label=label)
    _finish(whole, "filters $m$", LEFT)
    _finish(above, "filters $m$", "left side minus its limit")
    return figure


def masks_figure(rows: Sequence[Row]) -> Figure:
    """Draw the left side against S and against 1 - xi, with its limit and the second term of the bound."""
    figure, (workers, density) = _panels()
    sparse = [{**row, "dropped": 1 - row["xi"]} for row in _select(rows, "xi") if row["xi"] < 1]
    for axes, points, key in ((workers, _select(rows, "workers"), "workers"), (density, sparse, "dropped")):
        _draw_measured(axes, points, key, "left", "measured", BLUE, "o")
        _draw_line(axes, points, key, "limit", "limit of infinite width", BLUE, "--")
        _draw_line(axes, points, key, "bound_masks", "bound's second term, no constant", GREY, ":")
    _finish(workers, "workers $S$", LEFT)
    _finish(density, r"$1-\xi$", LEFT)
    return figure


def steps_figure(rows: Sequence[Row]) -> Figure:
    """Draw the left side against eta and against T, with its two terms."""
    figure, (step, rounds) = _panels()
    for axes, key in ((step, "eta"), (rounds, "rounds")):
        points = _select(rows, key)
        _draw_measured(axes, points, key, "left", "left side", BLUE, "o")
        _draw_line(axes, points, key, "limit", "its limit of infinite width", BLUE, "--")
        _draw_line(axes, points, key, "distance", "weights' term", ORANGE, "-", "s")
        _draw_line(axes, points, key, "outputs", "outputs' term", GREEN, "-", "^")
        _draw_line(axes, points, key, "bound_masks", "bound's second term, no constant", GREY, ":")
    _finish(step, r"step $\eta$", LEFT)
    _finish(rounds, "rounds $T$", LEFT)
    return figure


def lazy_figure(rows: Sequence[Row]) -> Figure:
    """Draw why the proof works: few activations change, and the kernel is nearly that of infinite width."""
    figure, (changed, kernel) = _panels()
    points = _select(rows, "filters")
    _draw_measured(changed, points, "filters", "changed", "random masks", BLUE, "o")
    _draw_measured(changed, _select(rows, "disjoint"), "filters", "changed", "disjoint groups", ORANGE, "s")
    if points:
        at = [row["filters"] for row in points]
        guide = [points[0]["changed"] * (m / at[0]) ** -0.5 for m in at]
        changed.plot(at, guide, "-.", color=GREY, label=r"$m^{-1/2}$")
    _draw_measured(kernel, points, "filters", "lambda_min", r"empirical kernel at $W_0$", BLUE, "o")
    _draw_line(kernel, points, "filters", "lambda_0", r"$\lambda_0$ of infinite width", BLUE, "--")
    _finish(changed, "filters $m$", "share of activations changed after $T$ rounds")
    _finish(kernel, "filters $m$", "smallest eigenvalue", logarithmic=False)
    return figure


def _panels() -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    return figure, figure.subplots(1, 2)


def _select(rows: Sequence[Row], sweep: str) -> list[Row]:
    return [row for row in rows if row["sweep"] == sweep]


def _draw_measured(axes: Axes, rows: Sequence[Row], x: str, y: str, label: str, colour: str, marker: str) -> None:
    shown = [row for row in rows if row[y] is not None and row[y] > 0]
    if not shown:
        return
    # A bar that reaches 0 or below would have no lower end on a logarithmic axis.
    errors = [[min(row[f"{y}_se"], 0.9 * row[y]) for row in shown], [row[f"{y}_se"] for row in shown]]
    at, values = [row[x] for row in shown], [row[y] for row in shown]
    axes.errorbar(at, values, errors, fmt=f"{marker}-", ms=5, capsize=3, color=colour, label=label)


def _draw_line(
    axes: Axes, rows: Sequence[Row], x: str, y: str, label: str, colour: str, style: str, marker: str = ""
) -> None:
    shown = [row for row in rows if row[y] is not None and row[y] > 0]
    at, values = [row[x] for row in shown], [row[y] for row in shown]
    if shown:
        axes.plot(at, values, style, marker=marker, ms=4, color=colour, label=label)


def _finish(axes: Axes, xlabel: str, ylabel: str, *, logarithmic: bool = True) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if not axes.has_data():
        axes.text(0.5, 0.5, "no value above zero", ha="center", transform=axes.transAxes)
        return
    doubling = "$m$" in xlabel or "$S$" in xlabel
    axes.set_xscale("log", base=2 if doubling else 10)
    if not doubling:
        _label_plainly(axes.xaxis)
    if logarithmic:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 100:
            _label_plainly(axes.yaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis 1, 2, 5, 10 ...; by default it has too few labels, or labels that overlap."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _encode(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    # With this salt, the same rows give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "loft_jax"}):
        figure.savefig(content, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()
