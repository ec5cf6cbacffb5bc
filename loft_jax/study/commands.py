"""The command of each job, as a list of arguments; it is called as a process of its own."""

import sys
from pathlib import Path

from loft_jax.errors import UserError
from loft_jax.study.fields import BenchStep, PytestStep, RetrainStep, TicketsStep, TrainStep
from loft_jax.study.jobs import Job
from loft_jax.study.place import Place
from loft_jax.study.study import Study
from loft_jax.tickets import ticket_name

TESTS, SPEED = "tests.xml", "bench.jsonl"


def command_of(job: Job, study: Study, place: Place, rounds: int | None) -> list[str]:
    """Return the command of a job whose needs are done.

    Args:
      rounds: of retrainings, if the study sets it.

    Raises:
      UserError: the run that it works on cannot be read, or has no snapshots.
    """
    files = place.files(job.name).path.absolute()
    if isinstance(job.step, TicketsStep):
        _check_snapshots(job, place)
    match job.step:
        case PytestStep(marker=marker, paths=paths):
            # Instead of the repository's options, which need pytest-xdist.
            options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-m", marker]
            options.append(f"--junitxml={files / TESTS}")
            return [sys.executable, "-m", "pytest", *paths, *options]
        case BenchStep(arguments=arguments):
            return [*_program("bench"), "--append", str(files / SPEED), *arguments]
        case TrainStep():
            assert job.setting is not None  # It belongs to a run.
            config = ["--config", str(place.settings(job.setting)), "--seed", str(job.seed)]
            return [*_program("train"), *config, "--workdir", str(place.run(job).path)]
        case RetrainStep() as step:
            retraining = [*_program("retrain"), str(place.run(job).path), "--ticket", *tickets_of(job, step, place)]
            retraining += ["--mode", *step.modes, "--seeds", *map(str, step.seeds or [job.seed])]
            retraining += [f"--{key}={value}" for key, value in study.retrain_overrides.items()]
            retraining += [] if step.timed else ["--untimed"]
            return retraining + ([] if rounds is None else ["--train.rounds", str(rounds)])
        case TicketsStep() as step:
            ratios = [f"{ratio:.12g}" for ratio in step.ratios]
            chosen = ["--ratios", *ratios, "--scope", step.scope, "--norm", step.norm]
            return [*_program("tickets"), str(place.run(job).path), *chosen]
    raise AssertionError(f"{job.kind} has no command")


def report_command(runs: list[Path], out: Path) -> list[str]:
    """Return the command that makes one report of some runs."""
    return [*_program("report"), *map(str, runs), "--out", str(out)]


def tickets_of(job: Job, step: RetrainStep, place: Place) -> list[str]:
    """Return the names of the tickets that a job retrains: those of the run's last snapshot."""
    summary = place.run(job).summary()
    if summary is None:
        raise UserError(f"{place.run(job).path}: holds no finished run; train it again")
    return [ticket_name(summary["round"], step.scope, step.norm, ratio) for ratio in step.ratios]


def _check_snapshots(job: Job, place: Place) -> None:
    """Raise UserError if the snapshots of a job's run are gone; results that are brought along have none."""
    run = place.run(job)
    try:
        run.snapshot_rounds()
    except UserError:
        raise UserError(
            f"the snapshots of {run.path} are not here; delete that directory to train the run again"
        ) from None


def _program(name: str) -> list[str]:
    return [sys.executable, "-m", f"loft_jax.{name}"]
