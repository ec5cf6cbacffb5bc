"""Human-readable output of the experiment on Theorem 1: its inputs, its progress, its results."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loft_jax.console import SECONDS_BETWEEN_LINES, ProgressBar, console, duration, make_table, shows_bars
from loft_jax.theory.rows import Row
from loft_jax.theory.sweep import SweepPoint, TheoremSweep


def print_inputs(sweep: TheoremSweep) -> None:
    """Print the lines before the experiment: inputs, network, kernel, readings, number of points."""
    theory, eigenvalues = sweep.theory, sweep.kernels.eigenvalues
    sizes = f"n = {theory.samples}, d = {theory.channels}, p = {theory.pixels}, q = {theory.window}"
    print(f"inputs    {theory.data}: {sizes}")
    print(f"network   one sign per {theory.signs}, kappa = {theory.kappa:g}")
    print(f"kernel    eigenvalues of infinite width: {eigenvalues[0]:.4f} (lambda_0) to {eigenvalues[-1]:.4f}")
    print(f"readings  theory.scale: {theory.scale}, theory.gd_step: {theory.gd_step}")
    count = len(sweep.points)
    print(f"sweep     {count} points, {theory.draws} draws of W_0 each, {theory.rounds} rounds", flush=True)


class SweepProgress(ProgressBar):
    """Shows finished draws and the time left, on stderr: a bar on a terminal, otherwise a line from time to time."""

    def __init__(self, sweep: TheoremSweep):
        theory = sweep.theory
        self._work = sweep.work
        self._total, self._done = theory.draws * sum(map(sweep.work, sweep.points)), 0
        self._numbers = {point: i + 1 for i, point in enumerate(sweep.points)}
        self._draws = theory.draws
        self._start = self._last_line = time.perf_counter()
        if shows_bars(sys.stderr):
            columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.add_task("", total=self._total)

    def update(self, point: SweepPoint, draw: int) -> None:
        """Count one draw of a point as done."""
        self._done += self._work(point)
        now = time.perf_counter()
        left = (now - self._start) * (self._total / self._done - 1)
        text = (
            f"point {self._numbers[point]}/{len(self._numbers)}  m {point.filters}  S {point.workers}  "
            f"draw {draw + 1}/{self._draws}  {duration(left)} left"
        )
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=text)
        elif now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(text, file=sys.stderr, flush=True)


def print_results(rows: Sequence[Row], summary: Row) -> None:
    """Print the points and the slopes."""
    headings = (
        "sweep",
        "m",
        "S",
        "xi",
        "eta",
        "T",
        "left side",
        "weights",
        "outputs",
        "limit",
        "changed",
        "bound, masks",
    )
    table = make_table(
        "left side of Theorem 1 ± standard error over W_0, its terms, its limit; bound without constant", *headings
    )
    for row in rows:
        if row["sweep"] == "rounds" and row["rounds"] & (row["rounds"] - 1):
            continue
        table.add_row(
            row["sweep"],
            *(f"{row[key]:g}" for key in ("filters", "workers", "xi", "eta", "rounds")),
            f"{_format_short(row['left'])} ± {_format_short(row['left_se'])}",
            *(_format_short(row[key]) for key in ("distance", "outputs", "limit")),
            f"{row['changed']:.1%}",
            _format_short(row["bound_masks"]),
        )
    console().print(table)
    for name, fit in summary["slopes"].items():
        if fit is not None:
            interval = f"{fit['slope']:+.3f} (95 %: {fit['low']:+.3f} to {fit['high']:+.3f})"
            print(f"slope     {name}: {interval}, from {fit['first']:g} to {fit['last']:g}")
    floor = summary["floor_from_filters"]
    reached = "at no m of the sweep" if floor is None else f"from m = {floor} on"
    print(f"floor     the left side is within 10 % of its limit {reached}")
    if summary["left_at_xi_1"] is not None:
        print(f"xi = 1    left side {summary['left_at_xi_1']:.1e}")


def _format_short(value: float | None) -> str:
    """Format a value with three digits: "" for None, and 0 for a rounding error."""
    return "" if value is None else "0" if abs(value) < 1e-15 else f"{value:.3g}"
