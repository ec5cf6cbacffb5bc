"""A run's directory: every file name, the config it was made with, and its rows of metrics.

Imports neither JAX nor NumPy, so a finished or refused run says so at once.
"""

import atexit
import os
import platform
import shutil
import sys
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loft_jax.config import Config, apply_overrides, flatten
from loft_jax.errors import UserError, format_value, offer, path_problem
from loft_jax.files import ASIDE, clear_leftovers, ensure_writable, put_aside, stop_on_write_error
from loft_jax.storage.config_file import owner_of, read_config_file, write_config_file
from loft_jax.storage.data_file import read_data, write_data
from loft_jax.storage.metrics import JsonLines, Row
from loft_jax.storage.records import UnsoundError
from loft_jax.storage.saved import saved_rounds
from loft_jax.storage.summary import check_belongs, read_summary, write_summary
from loft_jax.storage.trackers import Tracker, check_installed, create_trackers

if TYPE_CHECKING:
    import filelock

CONFIG, DATA, METRICS, SUMMARY = "config.yaml", "data.json", "metrics.jsonl", "summary.json"
# The lock, and who holds it: some versions of filelock empty the lock's own file when they ask for it.
LOCK, OWNER = ".lock", ".lock.owner"
CHECKPOINTS, SNAPSHOTS, PROFILE = "checkpoints", "snapshots", "profile"
RANKINGS, DISTANCES, OVERLAPS, SEARCH = "rankings.npz", "distances.csv", "overlaps.npz", "search.json"
TICKETS, RETRAIN, RESULTS, COSTS = "tickets", "retrain", "results.csv", "cost.csv"
TICKET = "ticket.json"


class RunDirectory:
    """The directory of one run. Every file is written aside and renamed, except the rows, which are appended.

    `label` says in messages what the directory is; raises UserError if no directory can have that name.

    Attributes:
      path: the directory, and the places in it by name.
      writes: whether this process writes there; of several processes of a run only the first should.
    """

    def __init__(self, path: str | Path, label: str = "run directory"):
        if problem := path_problem(str(path)):
            raise UserError(f"{label} {format_value(str(path))}: {problem}; use the name of a directory")
        self.path, self.writes, self._label = Path(os.path.expanduser(path)), True, label
        self._rows_of: str | None = None
        self._lock: filelock.BaseFileLock | None = None
        self.checkpoints = self.path / CHECKPOINTS
        self.snapshots = self.path / SNAPSHOTS
        self.profile = self.path / PROFILE
        self.rankings = self.path / RANKINGS
        self.distances = self.path / DISTANCES
        self.overlaps = self.path / OVERLAPS
        self.search = self.path / SEARCH
        self.tickets = self.path / TICKETS
        self.retrain = self.path / RETRAIN
        self.metrics = self.path / METRICS
        self._trackers: list[Tracker] = []
        self._close_trackers: weakref.finalize | None = None

    @property
    def started(self) -> bool:
        """Whether anything is there except a config: a failed start leaves nothing else."""
        return self.path.is_dir() and any(
            path.name not in (CONFIG, DATA, LOCK, OWNER) and not path.name.startswith(f".{CONFIG}.")
            for path in self.path.iterdir()
        )

    def open(self, config: Config, what: str = "") -> None:
        """Make the directory, or check that it holds a run of the same config; write the config unless it is finished.

        The directory is locked for this process until `close`, or until the process ends.

        Args:
          config: of the run.
          what: what else tells its rows and states from those of other runs of the same config.

        Raises:
          UserError: it cannot be written, is no run directory, was made with another config, or is another process's,
            or the library of a tracker is not installed.
        """
        ensure_writable(self.path, self._label)
        if self.started and not (self.path / CONFIG).exists():
            raise UserError(f"{self._label} {self.path}: is not empty and holds no run; use another")
        if self.started:
            self.check_same(config)
        summary, problem = self._read_summary()
        finished = summary is not None
        if not finished:
            check_installed(config.train)
        self._claim()
        clear_leftovers(self.path, f".*{ASIDE}")
        self._rows_of = owner_of(config, what)
        if problem:
            print(f"warning: {problem}; it is made again", file=sys.stderr, flush=True)
        if not finished:
            write_config_file(self.path / CONFIG, config, self._rows_of)
        if self._close_trackers is None:
            self._trackers = create_trackers(config, self.path)

    def close(self) -> None:
        """Close the trackers, and let another process open the directory."""
        try:
            if self._close_trackers:
                atexit.unregister(self._close_trackers)
                self._close_trackers()
        finally:
            self._close_trackers = None
            if self._lock:
                self._lock.release()
                self._lock = None

    def _claim(self) -> None:
        """Lock the directory until `close`, or until the process ends, however it ends."""
        if self._lock:
            return
        import filelock

        with stop_on_write_error(self.path / LOCK):
            (self.path / LOCK).touch()
        # Where the system has no locks, filelock would make a file instead, and a killed process would leave it behind.
        lock = filelock.FileLock(self.path / LOCK, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise UserError(
                f"{self._label} {self.path}: another process is using it ({self._owner()}); wait for it, stop it, "
                "or use another directory"
            ) from None
        except OSError as error:
            print(
                f"warning: {self._label} {self.path}: cannot be locked ({error.strerror}); see that nothing else "
                "trains there",
                file=sys.stderr,
            )
        with stop_on_write_error(self.path / OWNER):
            (self.path / OWNER).write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        self._lock = lock

    def _owner(self) -> str:
        with suppress(OSError):
            return (self.path / OWNER).read_text(encoding="utf-8").strip()
        return "its name is not known yet"

    def agree_on_data(self, identity: Row) -> None:
        """Write down which data the run is trained on; if that has been done, check that they are the same.

        Args:
          identity: of the data set, as `data_identity` returns it.

        Raises:
          UserError: the run was trained on other data.
        """
        try:
            before = read_data(self.path / DATA)
        except UnsoundError as error:
            before = None
            print(f"warning: {error}; it is written again", file=sys.stderr, flush=True)
            if self.writes:
                put_aside(self.path / DATA)
        if before is None or not self.started:
            if self.writes:
                write_data(self.path / DATA, identity)
            return
        differing = [key for key, value in identity.items() if before.get(key, value) != value]
        if differing:
            fields = "; ".join(f"{key}: {before[key]} there, {identity[key]} now" for key in differing)
            raise UserError(
                f"{self._label} {self.path}: was trained on other data ({fields}); use that data, or another directory"
            )

    def data_identity(self) -> Row | None:
        """Which data the run is trained on, as `data_identity` returns it; None if that is not written down."""
        with suppress(UnsoundError):
            return read_data(self.path / DATA)
        return None

    def read_config(self) -> Config:
        """The config of the run. Raises UserError if there is none, or it was changed."""
        return read_config_file(self.path / CONFIG)[0]

    def data_config(self) -> Config | None:
        """Read the config whose data set is the run's: a retraining's has the seed of its run, which splits the images.

        None where there is no config, or where a retraining is no longer in the directory of its run.

        Raises:
          UserError: a config that is there cannot be read.
        """
        if not (self.path / CONFIG).exists():
            return None
        config = self.read_config()
        if not (self.path / TICKET).exists():
            return config
        above = self.path.resolve().parents
        if len(above) < 4 or above[2].name != RETRAIN or not (above[3] / CONFIG).exists():
            return None
        return config.model_copy(update={"seed": RunDirectory(above[3]).read_config().seed})

    def config_with(self, overrides: dict[str, str]) -> Config:
        """The config of the run with the text given for dotted keys, for commands that cannot change what it was.

        Raises:
          UserError: there is no config, or an override would change the result of the run.
        """
        config = self.read_config()
        changed = apply_overrides(config.model_dump(), overrides, source="command line")
        before, now = flatten(config), flatten(changed)
        for key in overrides:
            if now[key] != before[key] and key not in config.resumable_keys():
                raise UserError(
                    f"--{key} {format_value(now[key])}: the run was made with {format_value(before[key])}; leave it "
                    "out, or train another run"
                )
        return changed

    def snapshot_rounds(self) -> list[int]:
        """Rounds of the run's snapshots, ascending. Raises UserError if there are none."""
        rounds = saved_rounds(self.snapshots)
        if not rounds and (self.path / TICKET).exists():
            run = self.path.resolve().parents[3] if len(self.path.resolve().parents) > 3 else "its run"
            raise UserError(
                f"{self.path}: is the retraining of a ticket, which has no snapshots; give the run that the ticket was "
                f"drawn from, {run}"
            )
        if not rounds:
            train = offer("train", "--config", self.path / CONFIG, "--workdir", self.path)
            raise UserError(f"{self.path}: holds no snapshots; train it first: {train}")
        if rounds[0] != 0:
            raise UserError(f"{self.snapshots}: that of round 0, the initialisation, is missing; train the run again")
        return rounds

    def append(self, row: Row) -> None:
        """Add one row of metrics, to metrics.jsonl and then to the trackers. Raises RunStopped if it is not written."""
        if not self.writes:
            return
        self._lines().append(row)
        if self._close_trackers is None:
            self._start_trackers(self.rows())
            return
        for tracker in self._trackers:
            tracker.append(row)

    def _start_trackers(self, rows: Sequence[Row]) -> None:
        if self._close_trackers is None:
            # A service waits to be told that the run is over, also when the process forgets this object, or ends.
            self._close_trackers = weakref.finalize(self, _close, self._trackers, self.path / SUMMARY)
        for tracker in self._trackers:
            tracker.start(rows)
        # What is registered last is called first: before the libraries themselves shut down.
        atexit.unregister(self._close_trackers)
        atexit.register(self._close_trackers)

    def replace_row(self, row: Row) -> None:
        """Write a row in place of that of its round, and without those of later ones."""
        if self.writes:
            rows = [*(other for other in self.rows() if other["round"] < row["round"]), row]
            self._lines().start(rows)
            self._start_trackers(rows)

    def _lines(self) -> JsonLines:
        if self._rows_of is None:
            # Of what is no run, as of checkpoints from elsewhere, there is no config.
            there = (self.path / CONFIG).exists()
            return JsonLines(self.metrics, read_config_file(self.path / CONFIG)[1] if there else "")
        return JsonLines(self.metrics, self._rows_of)

    def rows(self) -> list[Row]:
        """Read all sound rows, in the order of their rounds, each once. Raises UserError if the config is not sound."""
        return self._lines().read()[0]

    def lost_rows(self) -> list[str]:
        """Why lines of the rows cannot be used, each of them; [] if all can."""
        return [f"{self.metrics}: {problem}" for problem in self._lines().read()[1]]

    def forget_after(self, round_number: int) -> None:
        """Delete rows and snapshots after the round that a run resumes from, so that no round is recorded twice.

        Later checkpoints, which could not be read, are renamed and kept, because someone may be able to repair them.
        """
        if not self.writes:
            return
        kept = [row for row in self.rows() if row["round"] <= round_number]
        self._lines().start(kept)
        self._start_trackers(kept)
        for later in [r for r in saved_rounds(self.snapshots) if r > round_number]:
            with stop_on_write_error(self.snapshots / str(later)):
                shutil.rmtree(self.snapshots / str(later))
        for later in [r for r in saved_rounds(self.checkpoints) if r > round_number]:
            aside = self.checkpoints / f"{later}.damaged"
            with stop_on_write_error(aside):
                if aside.exists():
                    shutil.rmtree(aside)
                (self.checkpoints / str(later)).rename(aside)

    def write_summary(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the summary; its presence says that the run is finished. Returns it as it is in the file."""
        if not self.writes:
            return summary
        if self._read_summary()[1]:
            put_aside(self.path / SUMMARY)
        return write_summary(self.path / SUMMARY, summary)

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None where there is none, or one that is not sound or of another run.

        Without one the run resumes from its last checkpoint, and writes the summary again.
        """
        return self._read_summary()[0]

    def summary_problem(self) -> str | None:
        """Why there is a summary that cannot be used; None if there is none, or a sound one."""
        return self._read_summary()[1]

    def _read_summary(self) -> tuple[Row | None, str | None]:
        try:
            summary = read_summary(self.path / SUMMARY)
            if summary is not None and (self.path / CONFIG).exists():
                config = self.read_config()
                check_belongs(self.path / SUMMARY, summary, config.hash(), config.seed)
        except UnsoundError as error:
            return None, str(error)
        return summary, None

    def check_same(self, config: Config) -> None:
        """Raise UserError, naming the fields, if the run there was made with other settings."""
        before, now = flatten(self.read_config()), flatten(config)
        differing = [key for key in now if key not in config.resumable_keys() and now[key] != before[key]]
        if differing:
            fields = "; ".join(
                f"{key}: {format_value(before[key])} there, {format_value(now[key])} now" for key in differing
            )
            raise UserError(
                f"{self._label} {self.path}: holds a run with another config ({fields}); "
                "use another directory, delete this one, or use the settings it was made with"
            )


def _close(trackers: Sequence[Tracker], summary: Path) -> None:
    finished = summary.exists()
    with ExitStack() as stack:  # each of them, whatever another one raises
        for tracker in trackers:
            stack.callback(tracker.close, finished)
