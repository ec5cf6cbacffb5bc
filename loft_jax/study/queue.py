"""Works on the jobs of a study in order of worth, as long as time is left."""

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from loft_jax.console import SECONDS_BETWEEN_LINES, duration
from loft_jax.errors import RunStopped, UserError
from loft_jax.files import write_atomically
from loft_jax.signals import Preemption
from loft_jax.storage import CONFIG, METRICS
from loft_jax.study.commands import SPEED, TESTS, command_of, report_command
from loft_jax.study.fields import RetrainStep
from loft_jax.study.jobs import Job
from loft_jax.study.place import RESULTS, JobFiles, Place, Stopwatch
from loft_jax.study.process import Process
from loft_jax.study.records import DONE, FAILED, STOPPED
from loft_jax.study.rows import headline, is_evident, join_rows, result_rows, share_done
from loft_jax.study.study import Study
from loft_jax.study.tables import print_accuracies, write_accuracies
from loft_jax.study.times import Measured, Times, fits, waiting_for

Row = dict[str, Any]

OPEN, WORKED_ON, WAITING = "open", "in work", "waits"
_SECONDS_TO_ASK_AGAIN = 1.0


@dataclass
class Clock:
    """The time of one start.

    Attributes:
      end: when it must have ended, on the monotonic clock; infinite without a budget.
      end_of_study: when the budget of all starts together is spent, if starts follow each other at once.
      kept: seconds before an end which are kept for saving and for the report.
      stopwatch: tells other starts how long this one has taken; None before it begins.
    """

    end: float
    end_of_study: float
    kept: float
    stopwatch: Stopwatch | None = None

    def left(self) -> float:
        """Seconds that are left for jobs."""
        return self.end - self.kept - time.monotonic()

    def left_of_study(self) -> float:
        """Seconds that are left for jobs in this start and in later ones, if they have what is left of the budget."""
        if self.end_of_study <= self.end:
            return self.left()
        return self.end_of_study - 2 * self.kept - time.monotonic()

    def tick(self) -> None:
        """Note that the start goes on."""
        if self.stopwatch:
            self.stopwatch.tick()


@dataclass
class Queue:
    """The jobs of a study, and how this start works on them.

    Attributes:
      jobs: all jobs of the study; mine: those that this start may do.
      failed: names of those that have failed in this start -> why.
      stopped: names of those that were stopped in this start, which goes on without them.
    """

    study: Study
    place: Place
    jobs: Sequence[Job]
    mine: Sequence[Job]
    clock: Clock
    preemption: Preemption
    failed: dict[str, str] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)

    def work(self) -> None:
        """Do one job after another, until none is left that can be begun.

        Raises:
          Preempted: a stop was requested; the job in work has saved its state.
        """
        asked_again = False
        while True:
            job = self._next()
            if job is None:
                # Whoever lists the jobs holds their locks for a moment.
                if asked_again or not any(self._is_in_work(job) for job in self.mine):
                    return
                asked_again = True
                time.sleep(_SECONDS_TO_ASK_AGAIN)
                continue
            asked_again = False
            files = self.place.files(job.name)
            if files.claim():
                try:
                    if not self.is_done(job):
                        self._do(job, files)
                finally:
                    files.release()

    def times(self) -> Times:
        """What is known of the time that jobs take."""
        measured = {}
        for job in self.jobs:
            seconds = self.place.files(job.name).seconds
            if seconds:
                share = 1.0 if self.is_done(job) else min(0.99, share_done(job, self.place))
                measured[job.name] = Measured(seconds, share)
        return Times(self.jobs, measured, self.study.fields.retraining, self.place.chosen_rounds())

    def is_done(self, job: Job) -> bool:
        """Whether a job is done, and what it left is still there."""
        return self.place.files(job.name).result().get("state") == DONE and is_evident(job, self.place)

    def done(self) -> list[str]:
        """Names of the jobs that are done."""
        return [job.name for job in self.jobs if self.is_done(job)]

    def states(self) -> dict[str, str]:
        """Name of each job -> its state, for tables."""
        done = self.done()
        states = {}
        for job in self.jobs:
            result = self.place.files(job.name).result().get("state", OPEN)
            in_work = job.name not in done and self._is_in_work(job)
            waits = waiting_for(job, done)
            states[job.name] = DONE if job.name in done else WORKED_ON if in_work else WAITING if waits else result
        return states

    def can_begin(self) -> list[Job]:
        """The jobs of this start that need nothing else, whatever time is left."""
        done = self.done()
        aside = {*done, *self.failed, *self.stopped}
        return [job for job in self.mine if job.name not in aside and not waiting_for(job, done)]

    def fits(self, job: Job) -> bool:
        """Whether what is known of a job's time fits into what is left."""
        return fits(self._with_rounds(self.times(), job), job, self.clock.left())

    def _next(self) -> Job | None:
        return next((job for job in self.can_begin() if not self._is_in_work(job) and self.fits(job)), None)

    def _with_rounds(self, times: Times, job: Job) -> Times:
        """Return the times if a retraining is begun now, which may choose the number of rounds of all of them."""
        if times.rounds is not None or not isinstance(job.step, RetrainStep):
            return times
        rounds = times.choose_rounds(job, self.clock.left_of_study())
        return times if rounds is None else replace(times, rounds=rounds)

    def _is_in_work(self, job: Job) -> bool:
        return self.place.files(job.name).is_claimed

    def _rounds(self, job: Job, times: Times) -> int | None:
        """Return the number of rounds of retrainings; it is chosen at the first of them."""
        if not isinstance(job.step, RetrainStep):
            return None
        if times.rounds is None:
            return self.study.fields.retraining.rounds
        if self.place.chosen_rounds() is None:
            most = self.study.fields.retraining.rounds
            print(
                f"length    {times.rounds} of {most} rounds for every retraining, by the time that is left", flush=True
            )
        return self.place.choose_rounds(times.rounds)

    def _do(self, job: Job, files: JobFiles) -> None:
        """Do a job: its command, in a process. Writes its result. Raises Preempted."""
        times = self._with_rounds(self.times(), job)
        number, left = self.jobs.index(job) + 1, self.clock.left()
        remaining = "" if left == float("inf") else f"; {duration(left)} left"
        about = duration(times.left(job))
        print(f"job       {number}/{len(self.jobs)} {job.name}: about {about}{remaining}", flush=True)
        reason, process = None, None
        try:
            rounds = self._rounds(job, times)
            command = command_of(job, self.study, self.place, rounds)
            files.begin()
            for left_by_another_attempt in (TESTS, SPEED):
                (files.path / left_by_another_attempt).unlink(missing_ok=True)
            process = Process(command, files.log, signal.SIGINT if job.kind == "test" else signal.SIGTERM)
            reason = self._watch(job, process, files)
        except UserError as error:
            reason = str(error)
        finally:
            if process:
                process.kill()
        self._conclude(job, files, process, reason)

    def _watch(self, job: Job, process: Process, files: JobFiles) -> str | None:
        """Wait for a job's end, or end it when time is up. Returns why it has no result; None if it may have one."""
        printed, last_time = "", time.monotonic()

        def each() -> None:
            nonlocal printed, last_time
            self.clock.tick()
            files.tick()
            if time.monotonic() - last_time > SECONDS_BETWEEN_LINES:
                last_time = time.monotonic()
                line = process.last_line
                if line != printed:
                    print(f"          {line[:160]}", flush=True)
                printed = line

        limit = job.step.limit if job.step.limit is not None else float("inf")
        left = self.clock.left()
        with self.preemption.saving():
            ended = process.wait(min(limit, left), lambda: self.preemption.requested, each)
        if ended is None:
            return None
        process.end(self.study.fields.stop_seconds)
        if ended == "time" and limit < left:
            return f"stopped after its limit of {duration(limit)}"
        return STOPPED

    def _conclude(self, job: Job, files: JobFiles, process: Process | None, reason: str | None) -> None:
        code = None if process is None else process.exit_code
        evident = is_evident(job, self.place)
        # A training that was asked to stop, by whomever, has saved its round and ends with 0, or with 130.
        saved = reason is None and code in (0, 130) and job.kind in ("train", "retrain")
        if reason in (None, STOPPED) and code == 0 and evident:
            state, reason = DONE, None
        elif reason == STOPPED or saved:
            state, reason = STOPPED, None
        else:
            said = process.lines if process else []
            errors = [line for line in said if line.startswith("error: ")] or said
            state, reason = FAILED, reason or f"exit code {code}: {errors[-1] if errors else 'it printed nothing'}"
        rows = result_rows(job, self.place)
        facts = {"job": job.name, "kind": job.kind, "setting": job.setting, "seed": job.seed, "state": state}
        facts |= {"reason": reason, "exit_code": code, "ended": now(), "identity": job.identity(), "rows": rows}
        files.end(facts)
        self.write_results()
        took = duration(files.seconds)
        if state == FAILED:
            self.failed[job.name] = str(reason)
            print(f"failed    {job.name}: {reason}; see {files.log}", flush=True)
        elif state == STOPPED:
            self.stopped.add(job.name)
            share = share_done(job, self.place)
            print(f"stopped   {job.name} after {took}: {share:.0%} of it is done; the next start goes on", flush=True)
        else:
            print(f"done      {job.name} in {took}: {headline(job, rows)}", flush=True)
        if self.preemption.requested:
            raise self.preemption.stopped(f", {len(self.left())} jobs left")

    def left(self) -> list[Job]:
        """The jobs of this start that are not done."""
        done = self.done()
        return [job for job in self.mine if job.name not in done]

    def write_results(self) -> list[Row]:
        """Write results.jsonl and results.csv again, from the results of all jobs. Returns the rows of the second."""
        with self.place.lock(RESULTS):
            text = join_rows(self.jobs, self.place, self.place.starts())
            write_atomically(self.place.path / RESULTS, text)
            return write_accuracies(self.place, [json.loads(line) for line in text.splitlines()])

    def report(self) -> None:
        """Make the report of all runs that have begun, unless another process is still at work on the study.

        Raises:
          RunStopped: it could not be made.
        """
        print_accuracies(self.write_results())
        runs = sorted({self.place.run(job).path for job in self.jobs if job.run})
        runs = [run for run in runs if (run / CONFIG).exists() and (run / METRICS).exists()]
        others = [job.name for job in self.jobs if self._is_in_work(job)]
        if others:
            print(f"report    is left to the process that works on {others[0]}")
        if others or not runs:
            return
        files = self.place.files("report")
        if not files.claim():
            return
        process, began = None, time.monotonic()
        try:
            process = Process(report_command(runs, self.place.report), files.log)
            seconds = max(1.0, self.clock.end - time.monotonic() - 1.0)
            ended = process.wait(seconds, lambda: self.preemption.requested, self.clock.tick)
            if ended is not None:
                process.end(1.0)
                raise RunStopped(f"the report was stopped, because time was up; see {files.log}")
            if process.exit_code:
                raise RunStopped(f"the report failed ({process.last_line}); see {files.log}")
            files.note({"seconds": time.monotonic() - began})
            print(process.last_line, flush=True)
        finally:
            if process:
                process.kill()
            files.release()


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
