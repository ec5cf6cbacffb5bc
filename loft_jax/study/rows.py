"""Results of jobs as rows: what a run, a search, retrainings, tests and the bench gave, read from their files."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from loft_jax.storage import CHECKSUM, RunDirectory, UnsoundError, read_lines
from loft_jax.study.commands import SPEED, TESTS, tickets_of
from loft_jax.study.fields import RetrainStep
from loft_jax.study.jobs import Job
from loft_jax.study.place import Place
from loft_jax.study.records import SPEED_ROW, warn
from loft_jax.tickets import read_distances

Row = dict[str, Any]

# Of a retraining's summary; what else is in it, the file has.
_RETRAINED = (
    *("ticket", "ratio", "scope", "norm", "mode", "rewind_to", "ticket_round", "rounds", "test/accuracy", "test/loss"),
    *("train/loss", "parameters", "parameters_unpruned", "flops_per_image", "flops_per_image_unpruned"),
    *("steps_images_per_second", "steps_images_per_second_unpruned", "images_per_second", "device_kind", "jax"),
)


def share_done(job: Job, place: Place) -> float:
    """Return how much of a job's work is done, in [0, 1], by the files that are there; 0 if they do not say it."""
    if job.kind == "train":
        return _share_of_run(place.run(job), None if job.config is None else job.config.train.rounds)
    if isinstance(job.step, RetrainStep):
        directories = _retrainings(job, job.step, place)
        return statistics.fmean(_share_of_run(directory) for directory in directories) if directories else 0.0
    return 0.0


def _share_of_run(directory: RunDirectory, rounds: int | None = None) -> float:
    if directory.summary() is not None:
        return 1.0
    rows = directory.rows()
    if not rows:
        return 0.0
    # Not finished: a share of 1 means done.
    return min(0.99, rows[-1]["round"] / (rounds or directory.read_config().train.rounds))


def is_evident(job: Job, place: Place) -> bool:
    """Whether the files that a done job leaves are there."""
    if job.kind in ("train", "retrain"):
        return share_done(job, place) >= 1
    return job.kind != "tickets" or place.run(job).search.exists()


def result_rows(job: Job, place: Place) -> list[Row]:
    """Return the rows of a job's results so far."""
    common = {"job": job.name, "kind": job.kind, "setting": job.setting, "seed": job.seed}
    return [{**common, **row} for row in _rows(job, place)]


def _rows(job: Job, place: Place) -> list[Row]:
    match job.kind:
        case "train":
            summary = _summary(place.run(job))
            return [] if summary is None else [{key: value for key, value in summary.items() if key != CHECKSUM}]
        case "tickets":
            return _distances(place.run(job))
        case "retrain":
            assert isinstance(job.step, RetrainStep)  # Of that kind.
            summaries = [found for directory in _retrainings(job, job.step, place) if (found := _summary(directory))]
            return [_retrained(summary) for summary in summaries]
        case "test":
            return _tests(place, job.name)
        case _:
            rows, problems = read_lines(place.files(job.name).path / SPEED, SPEED_ROW)
            for problem in problems:
                warn(f"{problem}; it is left out")
            return rows


def _summary(directory: RunDirectory) -> Row | None:
    """Return the summary of a finished training; None where there is none, or a damaged one, which is said."""
    if problem := directory.summary_problem():
        warn(f"{problem}; it is left out")
    return directory.summary()


def _retrained(summary: Row) -> Row:
    kept = {key: summary[key] for key in _RETRAINED if key in summary}
    return {"retrain_seed": summary["seed"], "epochs": summary["epoch"], **kept}


def _retrainings(job: Job, step: RetrainStep, place: Place) -> list[RunDirectory]:
    """Return the directories of a job's retrainings; [] before its run is finished."""
    if place.run(job).summary() is None or job.seed is None:
        return []
    names, retrain = tickets_of(job, step, place), place.run(job).retrain
    seeds = step.seeds or [job.seed]
    return [RunDirectory(retrain / name / mode / f"seed{k}") for k in seeds for name in names for mode in step.modes]


def _distances(directory: RunDirectory) -> list[Row]:
    """Return a row for each snapshot: means over groups of the normalised distances; [] if they are damaged."""
    by_round: dict[int, list[Row]] = {}
    try:
        for rows in read_distances(directory).values():
            for row in rows:
                by_round.setdefault(row["round"], []).append(row)
    except UnsoundError as error:
        warn(f"{error}; it is left out")
        return []
    return [
        {
            "round": number,
            "epoch": _known(some[0]["epoch"]),
            "to_reference": _mean(some, "to_reference_normalised"),
            "to_previous": _mean(some, "to_previous_normalised"),
            "train/loss": _known(some[0]["train_loss"]),
            "test/accuracy": _known(some[0]["test_accuracy"]),
        }
        for number, some in sorted(by_round.items())
    ]


def _mean(rows: Sequence[Row], column: str) -> float | None:
    values = [value for row in rows if (value := _known(row[column])) is not None]
    return statistics.fmean(values) if values else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _tests(place: Place, name: str) -> list[Row]:
    """Return how many tests passed, were skipped and failed, and which failed."""
    try:
        cases = list(ElementTree.parse(place.files(name).path / TESTS).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return []
    outcomes = [(f"{case.get('classname')}.{case.get('name')}", {child.tag for child in case}) for case in cases]
    failed = [name for name, tags in outcomes if tags & {"failure", "error"}]
    skipped = sum("skipped" in tags for _, tags in outcomes)
    passed = len(outcomes) - len(failed) - skipped
    return [{"passed": passed, "skipped": skipped, "failed": len(failed), "names_failed": failed}]


def headline(job: Job, rows: Sequence[Row]) -> str:
    """Say in a few words what a job has given."""
    match job.kind:
        case "train" if rows:
            return f"test accuracy {rows[0]['test/accuracy']:.2%}, {rows[0]['images_per_second'] or 0:,.0f} images/s"
        case "tickets" if rows:
            return f"{len(rows)} snapshots searched"
        case "retrain":
            return ", ".join(f"{row['mode']} {row['ratio']:.12g}: {row['test/accuracy']:.2%}" for row in rows)
        case "test" if rows:
            return f"{rows[0]['passed']} tests passed, {rows[0]['skipped']} skipped, {rows[0]['failed']} failed"
        case "bench":
            return f"{len(rows)} rows"
    return "no results"


def join_rows(jobs: Sequence[Job], place: Place, starts: Sequence[Row]) -> str:
    """Return the text of results.jsonl: the machines of all starts, then the rows of every job, in their order."""
    rows = [{"kind": "start", **start} for start in starts]
    for job in jobs:
        result = place.files(job.name).result()
        if result:
            rows.append({key: value for key, value in result.items() if key not in ("rows", "identity")})
            rows += result.get("rows", [])
    return "".join(json.dumps(row) + "\n" for row in rows)
