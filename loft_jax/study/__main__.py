"""Do a study, from pretraining to one report: python -m loft_jax.study --config C --workdir DIR [--budget SECONDS]

C names settings, seeds and steps, and in which order they are worth doing. Every job is a command of this program, in a
process of its own. Run the same command again to go on: what is done is skipped, and a training goes on from its last
checkpoint. Several processes may work in one directory, as those of a Slurm array do (--task K/N).

With --budget a job is begun only if it fits into the time that is left, and a training that takes longer than expected
saves its state and is stopped. Time for the report is kept.

Writes into DIR:
  results.jsonl    the results of every job that has ended, at once
  results.csv      accuracies as means over seeds
  report/          the report of all runs
  jobs/NAME/       log.txt, and the result of a job
  runs/SETTING/seedK/   a run directory, as train, tickets and retrain leave it
"""

import argparse
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from loft_jax.config import CommandLine, path_name, run_command, whole_number
from loft_jax.console import duration
from loft_jax.errors import RunStopped, UserError, did_you_mean, format_value
from loft_jax.files import write_atomically
from loft_jax.signals import Preemption
from loft_jax.study.fields import PytestStep, describe_keys
from loft_jax.study.jobs import Job, expand, task_of
from loft_jax.study.machine import describe_machine
from loft_jax.study.place import Place
from loft_jax.study.queue import Clock, Queue
from loft_jax.study.records import DONE
from loft_jax.study.study import Study
from loft_jax.study.tables import print_jobs
from loft_jax.study.times import waiting_for

_FILE = "YAML file of a study, or the name of a packaged one (rehearsal, ...); its keys are below"
# Of a budget, kept in addition: processes start and end, files are written.
_MARGIN = 0.02


def main() -> None:
    command = CommandLine("python -m loft_jax.study", __doc__, file=_FILE)
    command.parser.epilog = describe_keys()
    add_options(command.parser)
    options, overrides = command.parse_overrides()
    if options.config is None:
        raise UserError("give --config FILE for the study, or the name of a packaged one, as in --config rehearsal")
    study = Study.read(options.config, overrides)
    jobs = expand(study)
    mine = chosen_jobs(jobs, options)
    place = Place(str(Path("runs") / Path(options.config).stem) if options.workdir is None else options.workdir)
    check_same(jobs, place)
    check_tests(mine, study)
    with Preemption() as preemption:
        queue = Queue(study, place, jobs, mine, Clock(math.inf, math.inf, 0.0), preemption)
        if options.list:
            print_jobs(jobs, queue.states(), queue.times())
            return
        check_needs(options, queue)
        queue.clock = clock_of(options, queue)
        check_budget(queue)
        run(queue, options.config)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options to its parser."""
    add = parser.add_argument
    add("--workdir", metavar="DIR", type=path_name, help="directory of the study (default: runs/NAME_OF_CONFIG)")
    add(
        "--budget", metavar="SECONDS", type=whole_number(1), help="seconds that this start may take (default: no limit)"
    )
    add("--list", action="store_true", help="list the jobs, and what is known of each; do nothing")
    add("--job", metavar="NAME", nargs="+", help="do these jobs only")
    add("--task", metavar="K/N", type=task, help="do part K of N of the work, from 0: whole runs, and what belongs\n"
        "to them")  # fmt: skip


def task(text: str) -> tuple[int, int]:
    """Parse K/N, an argparse type."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{format_value(text)}: must be K/N, with K from 0 to N - 1; try 0/4")
    return int(found[1]), int(found[2])


def chosen_jobs(jobs: Sequence[Job], options: argparse.Namespace) -> list[Job]:
    """Return the jobs that the options choose. Raises UserError if one is unknown, or if there are two choices."""
    if options.job and options.task:
        raise UserError("--job and --task both choose jobs; give one of them")
    if options.task:
        return task_of(jobs, *options.task)
    names = [job.name for job in jobs]
    for name in options.job or []:
        if name not in names:
            hint = did_you_mean(name, names, "--list shows all")
            raise UserError(f"--job {format_value(name)}: no such job{hint}")
    return [job for job in jobs if not options.job or job.name in options.job]


def check_same(jobs: Sequence[Job], place: Place) -> None:
    """Raise UserError, naming the keys, if a job was done with other settings."""
    for job in jobs:
        result, now = place.files(job.name).result(), job.identity()
        before = result.get("identity")
        if result.get("state") != DONE or not isinstance(before, Mapping):
            continue
        # A field that there was not yet had no other value than its default.
        before = {key: value for key, value in job.defaults().items() if key in now} | dict(before)
        differing = [key for key in {**before, **now} if _plain(before.get(key)) != _plain(now.get(key))]
        if differing:
            fields = "; ".join(
                f"{key}: {format_value(before.get(key))} there, {format_value(now.get(key))} now" for key in differing
            )
            raise UserError(
                f"--workdir {place.path}: the job {job.name} was done with other settings ({fields}); use another "
                "directory, or another name for the setting or step"
            )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def check_tests(jobs: Sequence[Job], study: Study) -> None:
    """Raise UserError if a file or folder of tests is not there."""
    for job in jobs:
        for path in job.step.paths if isinstance(job.step, PytestStep) else []:
            if not Path(path.split("::")[0]).exists():
                raise UserError(
                    f"{study.source}: steps.{job.step_name}.paths: {format_value(path)}: no such file or folder; run "
                    "the study in a clone of the repository, or leave the step out of the order"
                )


def check_needs(options: argparse.Namespace, queue: Queue) -> None:
    """Raise UserError if a job that --job names needs one that is neither done nor named."""
    if not options.job:
        return
    done = queue.done()
    for job in queue.mine:
        missing = [name for name in waiting_for(job, done) if name not in options.job]
        if missing:
            raise UserError(f"--job {job.name}: needs {missing[0]}, which is not done; add it")


def clock_of(options: argparse.Namespace, queue: Queue) -> Clock:
    """Return the clock of this start: by --budget, and by what earlier starts have left of the study's budget."""
    fields, spent = queue.study.fields, queue.place.spent()
    this, together = options.budget or math.inf, math.inf if fields.budget is None else fields.budget - spent
    seconds = min(this, together)
    report = max(fields.report.seconds, queue.place.files("report").result().get("seconds", 0.0))
    kept = fields.stop_seconds + report + (0.0 if seconds == math.inf else _MARGIN * max(0.0, seconds))
    now = time.monotonic()
    return Clock(now + seconds, now + (this if fields.budget is None else together), kept)


def check_budget(queue: Queue) -> None:
    """Raise UserError if time is too short for the first job, or, in a study that has begun, for any."""
    ready, times, left = queue.can_begin(), queue.times(), queue.clock.left()
    if not ready or left == math.inf:
        return
    first, begun = ready[0], bool(times.measured)
    if queue.fits(first) or (begun and any(queue.fits(job) for job in ready)):
        return
    fields, spent = queue.study.fields, queue.place.spent()
    needed = math.ceil((times.left(first) + queue.clock.kept) * (1 + _MARGIN))
    given = left + queue.clock.kept
    limited = fields.budget is not None and fields.budget - spent <= given + 1
    label = f"{queue.study.source}: budget={fields.budget:.0f}" if limited else f"--budget {given:.0f}"
    used = f", of which {spent:.0f} s are spent" if limited and spent else ""
    needed += math.ceil(spent) if limited else 0
    raise UserError(
        f"{label}{used}: is too small for the first job, {first.name}, which takes about {times.left(first):.0f} s, "
        f"beside {queue.clock.kept:.0f} s that are kept for saving and the report; give at least {needed}, or lower "
        f"steps.{first.step_name}.seconds if it takes less"
    )


def run(queue: Queue, name: str) -> None:
    """Work on the jobs, make the report, and say what is left.

    Raises:
      RunStopped: a job has failed; all others that could be done are done.
      Preempted: a stop was requested.
    """
    place, study = queue.place, queue.study
    place.open(yaml.safe_dump(study.fields.model_dump(), sort_keys=False))
    for setting, config in study.configs.items():
        write_atomically(place.settings(setting), yaml.safe_dump(config.model_dump(), sort_keys=False))
    queue.clock.stopwatch = place.start(describe_machine())
    seconds = queue.clock.end - time.monotonic()
    budget = "" if seconds == math.inf else f"; {duration(seconds)} to spend"
    left = queue.left()
    print(f"study     {name}: {len(queue.jobs)} jobs, {len(left)} of {len(queue.mine)} to do{budget}", flush=True)
    print(f"workdir   {place.path}", flush=True)
    queue.work()
    problems = list(queue.failed.items())
    try:
        queue.report()
    except RunStopped as stop:
        problems.append(("report", str(stop)))
    left = queue.left()
    if left:
        about = duration(sum(queue.times().left(job) for job in left))
        print(f"left      {len(left)} jobs, about {about}: {', '.join(job.name for job in left[:6])}")
        print("          run the same command again to go on")
    else:
        print(f"finished  {len(queue.mine)} jobs are done: {place.path / 'results.csv'}, {place.report}")
    if problems:
        raise RunStopped("\n       ".join(f"{job}: {reason}" for job, reason in problems))


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; run the same command again to go on")
