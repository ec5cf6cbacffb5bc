"""All finished retrainings of a run in one table: mean and deviation over seeds. Imports neither JAX nor NumPy."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from loft_jax.console import console
from loft_jax.files import write_table
from loft_jax.storage import RESULTS, RunDirectory

if TYPE_CHECKING:
    from loft_jax.filters import Rules

_FACTS = ("ticket", "mode", "rewind_to", "ticket_round", "ratio", "scope", "norm", "rounds", "settings")
_COSTS = ("parameters", "flops_per_image", "steps_images_per_second")
COLUMNS = (
    *_FACTS,
    *("rules", "epochs", "ticket_epoch", "seeds"),
    *("test_accuracies", "test_accuracy_mean", "test_accuracy_std", "test_accuracy_best_mean", "test_loss_mean"),
    *(name for cost in _COSTS for name in (cost, f"{cost}_unpruned")),
)
_NEEDED = {*_FACTS, *_COSTS, *(f"{cost}_unpruned" for cost in _COSTS)}

Row = dict[str, Any]


def collect_results(run: RunDirectory) -> tuple[list[Row], int]:
    """Return the results of all finished retrainings as rows, and the number of unfinished retrainings.

    A row is a ticket in a mode. Accuracies are those of the last round; the deviation is the sample's (n - 1) and empty
    for one seed. `test_accuracy_best_mean` is of the best evaluated round, which was chosen by test images, and so is
    too high; empty if one did not record it. `epochs` is the length of the retraining, `ticket_epoch` when the ticket
    was drawn; the costs are those of the first seed; `rules` is the name of the ticket's; `settings` is the hash of the
    config without its seed.
    """
    epochs = {row["round"]: row.get("epoch") for row in run.rows()}
    by_mode: dict[Any, list[Row]] = {}
    unfinished = 0
    for path in run.retrain.glob("*/*/seed*"):
        summary = RunDirectory(path).summary()
        if summary is None or not summary.keys() >= _NEEDED:
            unfinished += 1
        else:
            by_mode.setdefault(path.parent, []).append(summary)
    rows = [_row(summaries, epochs) for summaries in by_mode.values()]
    rows.sort(
        key=lambda row: (
            row["ratio"],
            row["scope"],
            row["norm"],
            row["rules"],
            row["ticket_round"],
            row["mode"],
            row["rewind_to"],
        )
    )
    return rows, unfinished


def write_results(run: RunDirectory) -> list[Row]:
    """Collect all finished retrainings into retrain/results.csv. Returns its rows."""
    rows, _ = collect_results(run)
    write_table(run.retrain / RESULTS, COLUMNS, rows)
    return rows


def print_results(run: RunDirectory, rows: Sequence[Row], rules: Iterable["Rules"] = ()) -> None:
    """Print rows of a run's results as a table; costs are shares of the unpruned network's.

    Args:
      rules: of the tickets in the rows; each is explained by a line under the table, and those without rules by none.
    """
    # Retrainings of earlier versions did not record it.
    best = ["best round"] if any(row["test_accuracy_best_mean"] is not None for row in rows) else []
    table = Table(
        title="test accuracy of the last round, mean ± sample deviation over seeds; / unpruned network's",
        caption="best round: mean over seeds; chosen by test images, and so too high" if best else None,
    )
    for heading in ("ticket", "epoch", "mode", "seeds", "accuracy", *best, "parameters", "FLOPs", "images/s"):
        table.add_column(heading, justify="left" if heading in ("ticket", "mode") else "right")
    for row in rows:
        spread = "" if row["test_accuracy_std"] is None else f" ± {100 * row['test_accuracy_std']:.2f}"
        mode = f"{row['mode']} to {row['rewind_to']}" if row["rewind_to"] else row["mode"]
        shares = ["" if (share := cost_share(row, cost)) is None else f"{share:.2f}" for cost in _COSTS]
        epoch = "" if row["ticket_epoch"] is None else f"{row['ticket_epoch']:.2f}"
        accuracy = f"{row['test_accuracy_mean']:.2%}{spread}"
        optimistic = row["test_accuracy_best_mean"]
        cells = ["" if optimistic is None else f"{optimistic:.2%}"] if best else []
        table.add_row(row["ticket"], epoch, mode, row["seeds"], accuracy, *cells, *shares)
    console().print(table)
    for each in dict.fromkeys(rules):
        if each.name:
            print(f"rules     {each.name}: {each.description}")
    if summary := run.summary():
        print(f"unpruned  {summary['test/accuracy']:.2%}: the run itself, after its {summary['round']} rounds")
    if len({row["settings"] for row in rows}) > 1:
        print("note      these rows were trained with different settings; see the column settings of results.csv")


def _row(summaries: list[Row], epochs: Mapping[int, float | None]) -> Row:
    summaries = sorted(summaries, key=lambda summary: summary["seed"])
    first, accuracies = summaries[0], [summary["test/accuracy"] for summary in summaries]
    best = [summary["test/accuracy_best"] for summary in summaries if "test/accuracy_best" in summary]
    return {
        **{key: first[key] for key in _FACTS},
        "rules": first.get("rules", ""),
        "epochs": first.get("epochs", first["epoch"]),
        "ticket_epoch": epochs.get(first["ticket_round"]),
        "seeds": " ".join(str(summary["seed"]) for summary in summaries),
        "test_accuracies": " ".join(str(accuracy) for accuracy in accuracies),
        "test_accuracy_mean": statistics.fmean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "test_accuracy_best_mean": statistics.fmean(best) if len(best) == len(summaries) else None,
        "test_loss_mean": statistics.fmean(summary["test/loss"] for summary in summaries),
        **{key: first[key] for cost in _COSTS for key in (cost, f"{cost}_unpruned")},
    }


def cost_share(costs: Mapping[str, Any], key: str) -> float | None:
    """Return a cost as a share of the unpruned network's; None if it was not measured."""
    compact, unpruned = costs[key], costs[f"{key}_unpruned"]
    return None if compact is None or unpruned is None else compact / unpruned
