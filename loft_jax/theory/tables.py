"""The experiment on Theorem 1 for people: what it is about, how long it takes, what came out."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loft_jax.console import SECONDS_BETWEEN_LINES, ProgressBar, console, duration, make_table
from loft_jax.theory.rows import Row
from loft_jax.theory.sweep import Setting, TheoremSweep


def print_inputs(sweep: TheoremSweep) -> None:
    """The lines before the experiment: inputs, network, kernel, readings, extent."""
    theory, eigenvalues = sweep.theory, sweep.kernels.eigenvalues
    sizes = f"n = {theory.samples}, d = {theory.channels}, p = {theory.pixels}, q = {theory.window}"
    print(f"inputs    {theory.data}: {sizes}")
    print(f"network   one sign per {theory.signs}, kappa = {theory.kappa:g}")
    print(f"kernel    eigenvalues of infinite width: {eigenvalues[0]:.4f} (lambda_0) to {eigenvalues[-1]:.4f}")
    print(f"readings  theory.scale: {theory.scale}, theory.gd_step: {theory.gd_step}")
    count = len(sweep.settings)
    print(f"sweep     {count} points, {theory.draws} draws of W_0 each, {theory.rounds} rounds", flush=True)


class SweepProgress(ProgressBar):
    """Shows the draw that is done and the time left: a bar on a terminal, else a line now and then, on stderr."""

    def __init__(self, sweep: TheoremSweep):
        theory = sweep.theory
        self._work = sweep.work
        self._total, self._done = theory.draws * sum(map(sweep.work, sweep.settings)), 0
        self._points = {setting: i + 1 for i, setting in enumerate(sweep.settings)}
        self._draws = theory.draws
        self._start = self._last_line = time.perf_counter()
        if sys.stderr.isatty():
            columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.add_task("", total=self._total)

    def update(self, setting: Setting, draw: int) -> None:
        """Count one draw of a setting as done."""
        self._done += self._work(setting)
        now = time.perf_counter()
        left = (now - self._start) * (self._total / self._done - 1)
        text = (
            f"point {self._points[setting]}/{len(self._points)}  m {setting.filters}  S {setting.workers}  "
            f"draw {draw + 1}/{self._draws}  {duration(left)} left"
        )
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=text)
        elif now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(text, file=sys.stderr, flush=True)


def print_results(rows: Sequence[Row], summary: Row) -> None:
    """The points and the slopes."""
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
            f"{_short(row['left'])} ± {_short(row['left_se'])}",
            *(_short(row[key]) for key in ("distance", "outputs", "limit")),
            f"{row['changed']:.1%}",
            _short(row["bound_masks"]),
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


def _short(value: float | None) -> str:
    """Three digits; nothing where there is no value, and 0 for what is only rounding."""
    return "" if value is None else "0" if abs(value) < 1e-15 else f"{value:.3g}"
