"""The progress of a run: one bar on a terminal; elsewhere a line at each evaluation, and sometimes between them."""

import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from loft_jax.console import SECONDS_BETWEEN_LINES, ProgressBar, console, duration, now_doing, shows_bars


class TrainingProgress(ProgressBar):
    """Shows round, time so far and time left, epoch, loss, accuracy and images/s. Use as a context manager."""

    def __init__(self, rounds: int, done: int):
        self._rounds = rounds
        self._accuracy: float | None = None
        self._start, self._last_line = time.perf_counter(), 0.0
        self._after_first: tuple[int, float] | None = None
        now_doing("compiling the first round")
        if shows_bars():
            columns = (
                TextColumn("round"),
                BarColumn(bar_width=12),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(table_column=Column(no_wrap=True)),
                TextColumn("left"),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                # What a narrow terminal cuts is the end of this.
                TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            )
            self._bar = Progress(*columns, console=console(), expand=True)
            self._bar.add_task("", total=rounds, completed=done)

    def update(self, row: dict[str, Any]) -> None:
        """Show a row of metrics.jsonl."""
        now_doing(f"training, {row['round']} of {self._rounds} rounds done")
        evaluated = "test/accuracy" in row
        self._accuracy = row.get("test/accuracy", self._accuracy)
        text = f"epoch {row['epoch']:.1f}"
        if "train/loss" in row:
            text += f"  loss {row['train/loss']:.4f}"
        if self._accuracy is not None:
            text += f"  test accuracy {self._accuracy:.2%}"
        if "images_per_second" in row:
            text += f"  {row['images_per_second']:,.0f} images/s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=row["round"], description=text)
            return
        left = self._time_left(row)
        if evaluated or time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            spent = duration(self._last_line - self._start)
            print(f"round {row['round']}/{self._rounds}  {text}  {spent}{left}", flush=True)

    def _time_left(self, row: dict[str, Any]) -> str:
        done, now = row["round"], time.perf_counter()
        if done == self._rounds:
            return ""
        if self._after_first is None:
            self._after_first = (done, now)
        first, then = self._after_first
        # The first round includes compilation; the others show how long a round takes.
        if done > first:
            a_round = (now - then) / (done - first)
        else:
            a_round = sum(row.get(f"seconds/{phase}", 0.0) for phase in ("train", "sync", "evaluation"))
        return f", {duration(a_round * (self._rounds - done))} left"
