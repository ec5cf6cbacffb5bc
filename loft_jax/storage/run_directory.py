"""A run's directory: every file name, the config it was made with, and its rows of metrics.

Imports neither JAX nor NumPy, so a finished or refused run says so at once.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import yaml

from loft_jax.config import Config, flatten, overridden, read_yaml, validated
from loft_jax.errors import UserError, path_problem, shown
from loft_jax.files import make_writable, write_aside, writing
from loft_jax.storage.events import PATTERN as EVENTS, row_event, start_file

CONFIG, METRICS, SUMMARY, LOCK = "config.yaml", "metrics.jsonl", "summary.json", ".lock"
CHECKPOINTS, SNAPSHOTS = "checkpoints", "snapshots"
RANKINGS, DISTANCES, OVERLAPS, SEARCH = "rankings.npz", "distances.csv", "overlaps.npz", "search.json"
TICKETS, RETRAIN, RESULTS, COSTS = "tickets", "retrain", "results.csv", "cost.csv"

_FEW = 20

Row = dict[str, Any]


class RunDirectory:
    """The directory of one run. Everything is written aside and renamed, but for the rows, which are appended.

    `label` says in messages what the directory is; raises UserError where no directory can go by that name.

    Attributes:
      path: the directory, and the places in it by name.
      writes: whether this process writes there; of several processes of a run only the first should.
    """

    def __init__(self, path: str | Path, label: str = "run directory"):
        if problem := path_problem(str(path)):
            raise UserError(f"{label} {shown(str(path))}: {problem}; use the name of a directory")
        self.path, self.writes, self._label = Path(path), True, label
        self._lock: IO[str] | None = None
        self.checkpoints = self.path / CHECKPOINTS
        self.snapshots = self.path / SNAPSHOTS
        self.rankings = self.path / RANKINGS
        self.distances = self.path / DISTANCES
        self.overlaps = self.path / OVERLAPS
        self.search = self.path / SEARCH
        self.tickets = self.path / TICKETS
        self.retrain = self.path / RETRAIN
        self._metrics = self.path / METRICS
        self._events: Path | None = None

    @property
    def started(self) -> bool:
        """Whether anything is there but a config, which is all that a start that failed leaves."""
        return self.path.is_dir() and any(
            path.name not in (CONFIG, LOCK) and not path.name.startswith(f".{CONFIG}.") for path in self.path.iterdir()
        )

    def open(self, config: Config) -> None:
        """Make the directory, or check that it holds a run of the same config; write the config of a run to go on.

        It is this process's until `close`, or until the process ends.

        Raises:
          UserError: it cannot be written, is no run directory, was made with another config, or is another process's.
        """
        make_writable(self.path, self._label)
        if self.started and not (self.path / CONFIG).exists():
            raise UserError(f"{self._label} {self.path}: is not empty and holds no run; use another")
        if self.started:
            self.check_same(config)
        self._claim()
        for name in (CONFIG, METRICS, SUMMARY, EVENTS):
            for left_by_a_crash in self.path.glob(f".{name}.*.tmp"):
                left_by_a_crash.unlink()
        if self.summary() is None:
            write_aside(self.path / CONFIG, yaml.safe_dump(config.model_dump(), sort_keys=False))

    def close(self) -> None:
        """Let another process open the directory."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _claim(self) -> None:
        if self._lock:
            return
        with writing(self.path / LOCK):
            lock = open(self.path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            # The system lets go of it when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                lock.seek(0)
                raise UserError(
                    f"{self._label} {self.path}: another process is at work there ({lock.read().strip()}); wait for "
                    "it, stop it, or use another directory"
                ) from None
            print(
                f"warning: {self._label} {self.path}: cannot be locked ({error.strerror}); see that nothing else "
                "trains there",
                file=sys.stderr,
            )
        with writing(self.path / LOCK):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}\n")
            lock.flush()
        self._lock = lock

    def read_config(self) -> Config:
        """The config of the run. Raises UserError if there is none."""
        path = self.path / CONFIG
        if not path.exists():
            raise UserError(f"{self.path}: holds no {CONFIG}; is it a run directory of loft_jax.train?")
        return validated(read_yaml(path, label=str(path)), source=str(path))

    def config_with(self, overrides: dict[str, str]) -> Config:
        """The config of the run with the text given for dotted keys, for commands that cannot change what it was.

        Raises:
          UserError: there is no config, or an override would change the result of the run.
        """
        config = self.read_config()
        changed = overridden(config.model_dump(), overrides, source="command line")
        before, now = flatten(config), flatten(changed)
        for key in overrides:
            if now[key] != before[key] and key not in config.resumable():
                raise UserError(
                    f"--{key} {shown(now[key])}: the run was made with {shown(before[key])}; leave it out, or train "
                    "another run"
                )
        return changed

    def snapshot_rounds(self) -> list[int]:
        """Rounds of the run's snapshots, ascending. Raises UserError if there are none."""
        rounds = saved_rounds(self.snapshots)
        if not rounds:
            raise UserError(f"{self.path}: holds no snapshots; train it first, python -m loft_jax.train --workdir ...")
        if rounds[0] != 0:
            raise UserError(f"{self.snapshots}: that of round 0, the initialisation, is missing; train the run anew")
        return rounds

    def append(self, row: Row) -> None:
        """Add one row of metrics, and its event for TensorBoard. Raises RunStopped if it cannot be written."""
        if not self.writes:
            return
        with writing(self._metrics), open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._events is None:
            self._events = start_file(self.path, self.rows())
            return
        with writing(self._events), open(self._events, "ab") as file:
            file.write(row_event(row, time.time()))

    def rows(self) -> list[Row]:
        """All rows, up to one that a crash has cut off or a disk has spoiled."""
        if not self._metrics.exists():
            return []
        rows = []
        for line in self._metrics.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or "round" not in row:
                break
            rows.append(row)
        return rows

    def forget_after(self, round_number: int) -> None:
        """Forget rows and snapshots past the round a run resumes from, so that each round stands once.

        Checkpoints past it, which could not be read, get another name: someone may know what to do with them.
        """
        if not self.writes:
            return
        kept = [row for row in self.rows() if row["round"] <= round_number]
        write_aside(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        self._events = start_file(self.path, kept)
        for later in [r for r in saved_rounds(self.snapshots) if r > round_number]:
            shutil.rmtree(self.snapshots / str(later))
        for later in [r for r in saved_rounds(self.checkpoints) if r > round_number]:
            aside = self.checkpoints / f"{later}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.checkpoints / str(later)).rename(aside)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary; its presence says that the run is finished."""
        if self.writes:
            write_aside(self.path / SUMMARY, json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None where there is none, or one that lacks what every summary has.

        The run then goes on from its last checkpoint, and writes it anew.
        """
        with suppress(FileNotFoundError, IsADirectoryError, ValueError):
            summary = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
            return summary if isinstance(summary, dict) and summary.keys() >= NEEDED else None
        return None

    def check_same(self, config: Config) -> None:
        """Raise UserError, naming the fields, if the run there was made with other settings."""
        before, now = flatten(self.read_config()), flatten(config)
        differing = [key for key in now if key not in config.resumable() and now[key] != before[key]]
        if differing:
            fields = "; ".join(f"{key}: {shown(before[key])} there, {shown(now[key])} now" for key in differing)
            raise UserError(
                f"{self._label} {self.path}: holds a run with another config ({fields}); "
                "use another directory, delete this one, or use the settings it was made with"
            )


def saved_instead(saved: Collection[int], asked: int) -> str:
    """The end of a message about a round that is not saved: the nearest one, and which there are."""
    nearest = min(saved, key=lambda r: (abs(r - asked), r))
    few = len(saved) <= _FEW
    there = ", ".join(map(str, sorted(saved))) if few else f"{len(saved)} from {min(saved)} to {max(saved)}"
    return f"try {nearest}; there are {there}"


def saved_rounds(directory: Path) -> list[int]:
    """Rounds that are completely saved in a directory of checkpoints or snapshots, ascending."""
    # What is being written, or was when the process died, has a suffix to its name.
    return (
        sorted(int(p.name) for p in directory.glob("*") if p.name.isascii() and p.name.isdigit())
        if directory.is_dir()
        else []
    )


PHASES = ("compile", "train", "sync", "evaluation")


# What is read of every summary, of a run and of a retraining.
NEEDED = {
    *("model", "data", "method", "seed", "round", "epoch", "test/accuracy", "test/loss", "images_per_second"),
    *(f"seconds/{phase}" for phase in PHASES),
}
