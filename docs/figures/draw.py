"""Draw the figures of the documentation that no report draws: python docs/figures/draw.py

`round.svg`, `groups.svg` and `house.svg` explain; `cifar10.svg`, `tickets.svg` and `bytes.svg` show figures that stand
in the tables of docs/results.
"""

import tomllib
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKERS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
SHARED, INK, PALE, LINE = "#bdbdbd", "#222222", "#f3f3f3", "#888888"

mpl.rcParams |= {
    "svg.hashsalt": "loft",
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def main() -> None:
    for name, draw in {
        "round": draw_round,
        "groups": draw_groups,
        "house": draw_house,
        "cifar10": draw_cifar10,
        "tickets": draw_tickets,
        "bytes": draw_bytes,
    }.items():
        figure = draw()
        figure.savefig(HERE / f"{name}.svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
        plt.close(figure)


def draw_round() -> Any:
    """A round of LoFT: filters dealt to workers, local steps, summed back, dealt again."""
    figure, axes = _canvas(13.2, 5.7)
    owners, following = [0, 2, 1, 3, 2, 0, 3, 1], [3, 1, 0, 2, 0, 3, 1, 2]
    _network(axes, 0.3, 1.0, owners, "full network\n8 hidden filters")
    _network(axes, 10.9, 1.0, following, "full network\ndealt again at random")
    for worker, colour in enumerate(WORKERS):
        y = 3.9 - 1.18 * worker
        axes.add_patch(FancyBboxPatch((4.2, y), 4.6, 0.96, boxstyle="round,pad=0.04", fc="white", ec=colour, lw=1.6))
        _box(axes, 4.35, y + 0.16, 0.32, 0.64, SHARED)
        for k in range(2):
            _box(axes, 4.8 + 0.42 * k, y + 0.3, 0.36, 0.36, colour)
        _box(axes, 5.72, y + 0.16, 0.32, 0.64, SHARED)
        axes.text(6.2, y + 0.66, f"worker {worker + 1}", va="center", fontweight="bold", color=colour)
        axes.text(6.2, y + 0.28, "16 SGD steps, own batches", va="center", fontsize=9)
        _arrow(axes, (2.25, 2.85), (4.1, y + 0.48), colour)
        _arrow(axes, (8.92, y + 0.48), (10.75, 2.85), colour)
    for x, text in ((3.2, "1 deal out"), (6.5, "2 train alone"), (9.8, "3 sum back")):
        axes.text(x, 5.35, text, ha="center", fontweight="bold", fontsize=12.5)
    axes.text(6.5, 0.0, "grey: shared by all workers, averaged at the sync", ha="center", color="#555555", fontsize=10)
    return figure


def _network(axes: Any, x: float, y: float, owners: list[int], title: str) -> None:
    axes.text(x + 0.93, y + 3.95, title, ha="center", va="bottom", fontsize=10.5)
    axes.add_patch(FancyBboxPatch((x, y), 1.86, 3.8, boxstyle="round,pad=0.04", fc=PALE, ec=LINE, lw=1.2))
    _box(axes, x + 0.18, y + 3.1, 1.5, 0.46, SHARED, "stem")
    for k, owner in enumerate(owners):
        _box(axes, x + 0.22 + 0.37 * (k % 4), y + 2.0 - 0.62 * (k // 4), 0.31, 0.5, WORKERS[owner])
    _box(axes, x + 0.18, y + 0.24, 1.5, 0.46, SHARED, "head")


def draw_groups() -> Any:
    """A residual block: which axis of which variable its hidden filters run along."""
    figure, axes = _canvas(10.6, 3.5)
    owners = [0, 1, 0, 1]
    y = 0.8
    axes.text(0.1, y + 0.9, "input\n(all channels)", va="center")
    _arrow(axes, (1.5, y + 0.9), (2.0, y + 0.9))
    parts = (("conv1/kernel", "last axis: 3"), ("norm2, its statistics", "axis: 0"), ("conv2/kernel", "axis: 2"))
    for column, (name, axis) in enumerate(parts):
        x = 2.1 + 2.3 * column
        for row, owner in enumerate(owners):
            _box(axes, x, y + 1.5 - 0.5 * row, 1.6, 0.42, WORKERS[owner])
        axes.text(x + 0.8, y + 2.15, name, ha="center", fontweight="bold", fontsize=10.5)
        axes.text(x + 0.8, y - 0.28, axis, ha="center", fontsize=10, color="#555555")
        _arrow(axes, (x + 1.65, y + 0.9), (x + 2.25, y + 0.9))
    axes.text(9.1, y + 0.9, "output\n(all channels)", va="center")
    axes.text(2.9, y + 1.71, "filter 0", ha="center", va="center", color="white", fontsize=9)
    axes.text(2.9, y + 1.21, "filter 1", ha="center", va="center", color="white", fontsize=9)
    axes.text(0.1, 0.0, "blue: worker 1, orange: worker 2", fontsize=10, color="#555555")
    return figure


def draw_house() -> Any:
    """The folders of the package: a layer imports only from the layers below it."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [[name.strip() for name in layer.split("|")] for layer in contract["layers"] if layer != "__main__"]
    commands = {path.parent.name for path in (ROOT / "loft_jax").glob("*/__main__.py")}
    top = 0.52 * len(layers)
    figure, axes = _canvas(9.4, top + 0.3)
    for level, names in enumerate(layers):
        y = top - 0.4 - 0.52 * level
        width = 8.4 / len(names)
        for column, name in enumerate(names):
            colour = WORKERS[0] if name in commands else "#e3e9ee"
            x = 0.3 + column * width
            axes.add_patch(
                FancyBboxPatch((x + 0.04, y), width - 0.16, 0.36, boxstyle="round,pad=0.03", fc=colour, ec="none")
            )
            ink = "white" if name in commands else INK
            axes.text(x + width / 2 - 0.04, y + 0.18, name, ha="center", va="center", color=ink, fontsize=10.5)
    _arrow(axes, (9.05, top - 0.05), (9.05, 0.1))
    axes.text(9.22, top / 2, "imports", rotation=270, va="center", color="#555555")
    axes.text(0.3, top + 0.15, "blue: commands, grey: library", color="#555555", fontsize=10)
    return figure


def draw_cifar10() -> Any:
    """Accuracy of every method on CIFAR-10 at small scale (docs/results/cifar10.md)."""
    rows = (
        ("plain SGD", 36.8, 1.5, 320),
        ("LoFT-2", 40.8, 1.7, 320),
        ("LoFT-4", 42.1, 3.2, 320),
        ("LoFT-4, exchange", 40.8, 0.4, 320),
        ("LoFT-4, exchange, partition all", 34.1, 2.0, 320),
        ("GPipe-4", 36.3, 0.8, 320),
        ("local SGD, 4 workers", 46.2, 2.0, 320),
        ("plain SGD, twice the steps", 48.0, 2.4, 640),
        ("plain SGD, 4 times the steps", 56.8, 0.6, 1280),
    )
    colours = [WORKERS[0] if "LoFT" in name else "#9e9e9e" for name, *_ in rows]
    return _bars(
        [name for name, *_ in rows],
        [mean for _, mean, *_ in rows],
        [deviation for _, _, deviation, _ in rows],
        colours,
        "test accuracy, %",
        [f"{mean:.1f} ± {deviation:.1f}" for _, mean, deviation, _ in rows],
    )


def draw_tickets() -> Any:
    """Retrained tickets and controls over a whole epoch of CIFAR-10 (docs/results/cifar10.md)."""
    rows = (
        ("LoFT-4, full network", 63.6, 0.4),
        ("plain SGD, full network", 60.6, 1.2),
        ("80 % removed: rewind", 57.2, 0.7),
        ("80 % removed: random filters", 57.1, 0.3),
        ("80 % removed: ticket of round 0", 57.3, 1.4),
    )
    return _bars(
        [name for name, *_ in rows],
        [mean for _, mean, _ in rows],
        [deviation for *_, deviation in rows],
        [WORKERS[0], "#9e9e9e", WORKERS[1], WORKERS[2], WORKERS[3]],
        "test accuracy, %",
        [f"{mean:.1f} ± {deviation:.1f}" for _, mean, deviation in rows],
    )


def draw_bytes() -> Any:
    """What four workers or devices send for PreResNet-34 on CIFAR-10 (docs/results/costs.md)."""
    rows = (
        ("LoFT, exchange, momentum reset", 85.12),
        ("LoFT, the paper's server", 144.27),
        ("LoFT, exchange, momentum carried", 170.12),
        ("LoFT or local SGD, psum, momentum reset", 255.55),
        ("GPipe, 20 epochs", 458.75),
        ("LoFT, psum, momentum carried", 510.91),
        ("data-parallel SGD, gradients", 4085.82),
    )
    colours = [WORKERS[0] if "LoFT" in name else "#9e9e9e" for name, _ in rows]
    labels = [f"{value:,.0f}" for _, value in rows]
    names, values = [name for name, _ in rows], [value for _, value in rows]
    return _bars(names, values, None, colours, "GB over the whole run, four workers (logarithmic)", labels, log=True)


def _bars(
    names: list[str],
    values: list[float],
    errors: list[float] | None,
    colours: list[str],
    label: str,
    texts: list[str],
    log: bool = False,
) -> Any:
    figure, axes = plt.subplots(figsize=(8.4, 0.42 * len(names) + 0.9))
    places = np.arange(len(names))[::-1]
    if log:
        axes.scatter(values, places, color=colours, s=60, zorder=3)
        axes.grid(axis="y", color="#e0e0e0")
    else:
        axes.barh(places, values, xerr=errors, color=colours, height=0.66, error_kw={"ecolor": INK, "capsize": 3})
    axes.set_yticks(places, names)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 2.5)
        axes.set_ylim(-0.7, len(names) - 0.3)
    else:
        axes.set_xlim(0, max(values) * 1.22)
    for place, value, text, error in zip(places, values, texts, errors or [0] * len(names), strict=True):
        end = value * 1.12 if log else value + error + 0.02 * max(values)
        axes.text(end, place, text, va="center", fontsize=10)
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0)
    return figure


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    figure = plt.figure(figsize=(width * 0.8, height * 0.8))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(-0.1, height + 0.1)
    axes.axis("off")
    return figure, axes


def _box(axes: Any, x: float, y: float, width: float, height: float, colour: str, text: str = "") -> None:
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02", fc=colour, ec="none"))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = LINE) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, lw=1.4))


if __name__ == "__main__":
    main()
