"""The progress of a run: one bar on a terminal; elsewhere a line at each evaluation, and sometimes between them."""

import sys
import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loft_jax.console import SECONDS_BETWEEN_LINES, ProgressBar, duration


class TrainingProgress(ProgressBar):
    """Shows round, epoch, loss, accuracy, images/s and time left. Use as a context manager."""

    def __init__(self, rounds: int, done: int):
        self._rounds = rounds
        self._accuracy: float | None = None
        self._first: tuple[int, float] | None = None
        self._last_line = 0.0
        if sys.stdout.isatty():
            columns = (TextColumn("round"), BarColumn(), TextColumn("{task.completed}/{task.total} {task.description}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar.add_task("", total=rounds, completed=done)

    def update(self, row: dict[str, Any]) -> None:
        """Show a row of metrics.jsonl."""
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
        left = self._time_left(row["round"])
        if evaluated or time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            print(f"round {row['round']}/{self._rounds}  {text}{left}", flush=True)

    def _time_left(self, done: int) -> str:
        now = time.perf_counter()
        if self._first is None:
            # The first round includes compilation; the others show how long a round takes.
            self._first = (done, now)
            return ""
        first, start = self._first
        return (
            "" if done == self._rounds else f"  {duration((now - start) / (done - first) * (self._rounds - done))} left"
        )
