"""Tables of a study: its jobs with their states, and accuracies as means over the seeds of runs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from loft_jax.console import console, duration, make_table
from loft_jax.files import write_table
from loft_jax.study.jobs import Job
from loft_jax.study.place import Place
from loft_jax.study.times import Times

Row = dict[str, Any]

COLUMNS = (
    *("setting", "what", "ratio", "scope", "norm", "epochs", "seeds"),
    *("test_accuracy_mean", "test_accuracy_std", "test_accuracies"),
)
UNPRUNED = "pretrained, unpruned"


def accuracy_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the accuracies of a study as means over seeds: of each setting's runs, and of its retrainings.

    Args:
      rows: of results.jsonl.

    Returns:
      A row with `COLUMNS` for each setting, ratio, mode and number of epochs. The deviation is the sample's (n - 1),
      and None for one seed; a seed is that of the run, followed by that of the retraining if it is another one.
    """
    series: dict[tuple[Any, ...], list[tuple[str, float]]] = {}
    for row in rows:
        if "test/accuracy" not in row or row.get("kind") not in ("train", "retrain"):
            continue
        if row["kind"] == "train":
            key = (row["setting"], UNPRUNED, None, None, None, round(row["epoch"], 2))
            seed = str(row["seed"])
        else:
            mode = f"{row['mode']} to {row['rewind_to']}" if row.get("rewind_to") else row["mode"]
            key = (row["setting"], mode, row["ratio"], row["scope"], row["norm"], round(row["epochs"], 2))
            seed = str(row["seed"]) if row["retrain_seed"] == row["seed"] else f"{row['seed']}.{row['retrain_seed']}"
        series.setdefault(key, []).append((seed, row["test/accuracy"]))
    return [
        {
            **dict(zip(COLUMNS, key, strict=False)),
            "seeds": " ".join(seed for seed, _ in found),
            "test_accuracy_mean": statistics.fmean(values := [value for _, value in found]),
            "test_accuracy_std": statistics.stdev(values) if len(values) > 1 else None,
            "test_accuracies": " ".join(map(str, values)),
        }
        for key, found in series.items()
    ]


def write_accuracies(place: Place, rows: Sequence[Row]) -> list[Row]:
    """Write results.csv; returns its rows."""
    accuracies = accuracy_rows(rows)
    write_table(place.path / "results.csv", COLUMNS, accuracies)
    return accuracies


def print_accuracies(rows: Sequence[Row]) -> None:
    """Print rows of results.csv."""
    if not rows:
        return
    title = "test accuracy of the last round, mean ± sample deviation over seeds; epochs: of that training itself"
    table = make_table(title, "setting", "what", "removed", "epochs", "seeds", "accuracy", left=2)
    for row in rows:
        spread = "" if row["test_accuracy_std"] is None else f" ± {100 * row['test_accuracy_std']:.2f}"
        removed = "" if row["ratio"] is None else f"{100 * row['ratio']:.12g} %"
        accuracy = f"{row['test_accuracy_mean']:.2%}{spread}"
        table.add_row(row["setting"], row["what"], removed, f"{row['epochs']:.2f}", row["seeds"], accuracy)
    console().print(table)


def print_jobs(jobs: Sequence[Job], states: Mapping[str, str], times: Times) -> None:
    """Print every job with its state, what it needs, and how long it takes."""
    table = make_table("jobs, in order of worth", "job", "kind", "state", "needs", "task", "seconds", left=4)
    for job in jobs:
        state = states[job.name]
        measured = times.measured.get(job.name)
        done = measured is not None and measured.share >= 1
        seconds = f"{measured.seconds:.0f}" if done and measured else f"about {times.left(job):.0f}"
        table.add_row(job.name, job.kind, state, " ".join(job.needs), str(job.chain), seconds)
    console().print(table)
    left = [job for job in jobs if states[job.name] != "done"]
    about = duration(sum(times.left(job) for job in left))
    print(f"left      {len(left)} of {len(jobs)} jobs, about {about}")
