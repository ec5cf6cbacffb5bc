"""What of a run's rows is lost when it starts, and what that means for sums over the run."""

import sys
from collections.abc import Sequence
from typing import Any

from loft_jax.storage import RunDirectory, describe_rounds, missing_rounds, saved_rounds

Row = dict[str, Any]


def rounds_without_rows(rows: Sequence[Row], last: int, first: int = 0) -> list[int]:
    """Return the rounds up to the last one whose times are not known, ascending: sums over the run lack them.

    Args:
      first: completed rounds with which the run began.
    """
    known = (row for row in rows if row["round"] == first or "seconds/train" in row)
    return [number for number in missing_rounds(known, last) if number >= first]


def warn_of_lost_rows(directory: RunDirectory, done: int, first_round: int) -> None:
    """Say which lines of the rows cannot be used, and which rounds of those that are done have none."""
    lost = directory.lost_rows()
    for problem in lost:
        _warn(f"{problem}; it is left out")
    if lost:
        _warn(f"{directory.metrics}: as it was, it is kept as {directory.metrics.name}.damaged; sound rows stay")
    if missing := rounds_without_rows(directory.rows(), done, first_round):
        _warn(
            f"{directory.metrics}: has no rows of rounds {describe_rounds(missing)}; sums over the whole run are not "
            "known, and left out of the summary"
        )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def rows_of_a_finished_run(directory: RunDirectory, rounds: int) -> list[Row] | None:
    """Return the rows of a run whose checkpoints are gone, if its last round is among them: then nothing is left to do.

    None if there are checkpoints, or it is not.
    """
    rows = directory.rows()
    finished = bool(rows) and rows[-1]["round"] == rounds and {"test/accuracy", "test/loss"} <= rows[-1].keys()
    return rows if finished and not saved_rounds(directory.checkpoints) else None
