"""The directory of a study: every file name, the state of each job, and who is at work on it.

study.yaml             the study, resolved
runs/SETTING/seedK/    a run directory for each setting and seed
settings/SETTING.yaml  the config of its runs
jobs/NAME/             log.txt, result.json when the job has ended, and what its command wrote
starts/ID.json         a file for each start: when, on which machine
lengths.json           the number of rounds of retrainings, once it is chosen
results.jsonl          the results of all jobs so far, a row each or several; results.csv, means over seeds
report/                the report
"""

import os
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loft_jax.errors import UserError, format_value, path_problem
from loft_jax.files import ensure_writable, stop_on_write_error, write_atomically
from loft_jax.storage import RunDirectory
from loft_jax.study.jobs import Job
from loft_jax.study.records import CLOCK, LENGTHS, RESULT, read_record, write_record

if TYPE_CHECKING:
    import filelock

STUDY, RESULTS, REPORT = "study.yaml", "results.jsonl", "report"
_FOLDERS = ("jobs", "runs", "starts", "settings")

Row = dict[str, Any]


class Place:
    """The directory of a study; raises UserError if it cannot have that name. Files are written aside and renamed."""

    def __init__(self, path: str):
        if problem := path_problem(path):
            raise UserError(f"--workdir {format_value(path)}: {problem}; use the name of a directory")
        self.path = Path(path)
        self.jobs, self.runs, self.report = self.path / "jobs", self.path / "runs", self.path / REPORT

    def open(self, study_text: str) -> None:
        """Make the directory, and write the study into it.

        Raises:
          UserError: it cannot be written, or holds something else.
        """
        ensure_writable(self.path, "--workdir")
        # Another process may be about to make the same study: its directories come first.
        foreign = [entry for entry in self.path.iterdir() if entry.name not in _FOLDERS and entry.name[0] != "."]
        if foreign and not (self.path / STUDY).exists():
            raise UserError(f"--workdir {self.path}: is not empty and holds no study; use another")
        for name in _FOLDERS:
            with stop_on_write_error(self.path / name):
                (self.path / name).mkdir(exist_ok=True)
        write_atomically(self.path / STUDY, study_text)

    def run(self, job: Job) -> RunDirectory:
        """Return the run directory that a job works on."""
        assert job.run is not None, "a job without a run"
        return RunDirectory(self.runs / job.run[0] / f"seed{job.run[1]}")

    def settings(self, setting: str) -> Path:
        """Return the file with the config of a setting's runs."""
        return self.path / "settings" / f"{setting}.yaml"

    def files(self, name: str) -> "JobFiles":
        """Return the files of a job."""
        return JobFiles(self.jobs / name)

    def lock(self, name: str) -> "filelock.BaseFileLock":
        """Return the lock of a file that several processes write."""
        return _lock(self.path / f".{name}.lock")

    def start(self, facts: Row) -> "Stopwatch":
        """Write down a start, with what is known of it. Returns what says how long it has taken."""
        return Stopwatch(self.path / "starts" / f"{time.time_ns()}-{uuid.uuid4().hex}.json", facts)

    def starts(self) -> list[Row]:
        """Return what is known of all starts, in their order, with the seconds that each has taken."""
        paths = sorted((self.path / "starts").glob("[!.]*.json"))
        return [{**read_record(path, CLOCK), "seconds": round(clock_seconds(path), 3)} for path in paths]

    def spent(self) -> float:
        """Return the seconds that all starts have taken together."""
        return sum(start["seconds"] for start in self.starts())

    def chosen_rounds(self) -> int | None:
        """Return the number of rounds of retrainings, if it has been chosen."""
        return read_record(self.path / "lengths.json", LENGTHS).get("rounds")

    def choose_rounds(self, rounds: int) -> int:
        """Fix the number of rounds of retrainings, unless another process has. Returns what holds."""
        with self.lock("lengths"):
            if (before := self.chosen_rounds()) is not None:
                return before
            write_record(self.path / "lengths.json", {"rounds": rounds})
        return rounds


class JobFiles:
    """The files of one job, and its lock.

    Attributes:
      path: their directory.
      log: what its command printed, of all attempts.
    """

    def __init__(self, path: Path):
        self.path, self.log, self._attempt = path, path / "log.txt", path / "attempt.json"
        self._lock: filelock.BaseFileLock | None = None
        self._stopwatch: Stopwatch | None = None

    def claim(self) -> bool:
        """Lock the job for this process until `release`, or until the process ends.

        Returns:
          False if another process has it.
        """
        import filelock

        with stop_on_write_error(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = _lock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        except OSError as error:
            warning = f"{self.path}: cannot be locked ({error.strerror}); see that no other process works on this study"
            print(f"warning: {warning}", file=sys.stderr)
        self._lock = lock
        return True

    def release(self) -> None:
        """Let another process have the job."""
        if self._lock:
            self._lock.release()
            self._lock = None

    @property
    def is_claimed(self) -> bool:
        """Whether a process is at work on the job."""
        if not self.path.is_dir():
            return False
        claimed = not self.claim()
        self.release()
        return claimed

    def result(self) -> Row:
        """Return what is known of the last attempt: state, seconds of all attempts, rows; {} before the first."""
        return read_record(self.path / "result.json", RESULT)

    @property
    def seconds(self) -> float:
        """Seconds of all attempts so far, those that were killed included."""
        attempt = read_record(self._attempt, CLOCK)
        spent = attempt.get("before", self.result().get("seconds"))
        return float(spent or 0.0) + clock_seconds(self._attempt)

    def begin(self) -> None:
        """Start the clock of an attempt."""
        self._stopwatch = Stopwatch(self._attempt, {"before": self.seconds})

    def tick(self) -> None:
        """Note that the attempt goes on: if this process is killed, its time is known from the last tick."""
        if self._stopwatch:
            self._stopwatch.tick()

    def end(self, result: Row) -> None:
        """Write the result of an attempt, with the seconds of all."""
        self.tick()
        self.note({**result, "seconds": round(self.seconds, 3)})
        self._attempt.unlink(missing_ok=True)

    def note(self, result: Row) -> None:
        """Write the result as it is."""
        write_record(self.path / "result.json", result)


class Stopwatch:
    """A file whose age says how long something has taken until its last tick: for other processes, and after a kill.

    The age is by this process's monotonic clock; the clock of the day may jump, and may differ from a file server's.
    """

    def __init__(self, path: Path, facts: Row):
        """Start, and write the file, with these facts in it."""
        self._path, self._began, self._started = path, time.time(), time.monotonic()
        write_record(path, {"began": self._began, **facts})
        self.tick()

    def tick(self) -> None:
        """Note that what is measured goes on."""
        until = self._began + time.monotonic() - self._started
        with suppress(OSError):
            os.utime(self._path, (until, until))


def clock_seconds(path: Path) -> float:
    """Return the seconds that the stopwatch of a file has measured; 0.0 if it has not been started."""
    began = read_record(path, CLOCK).get("began")
    if began is None:
        return 0.0
    with suppress(OSError):
        return max(0.0, path.stat().st_mtime - began)
    return 0.0


def _lock(path: Path) -> "filelock.BaseFileLock":
    import filelock

    # Where the system has no locks, filelock would make a file instead, and a killed process would leave it behind.
    return filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
