"""All finished retrainings of a run in one table: mean and deviation over seeds. Imports neither JAX nor NumPy."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from loft_jax.console import console, make_table
from loft_jax.files import write_table
from loft_jax.retrain.summary import COSTS, FACTS, read_retraining
from loft_jax.storage import RESULTS, RunDirectory, seed_of

if TYPE_CHECKING:
    from loft_jax.filters import Rules

COLUMNS = (
    *FACTS,
    *("rules", "epochs", "ticket_epoch", "seeds"),
    *("test_accuracies", "test_accuracy_mean", "test_accuracy_std", "test_accuracy_best_mean", "test_loss_mean"),
    *(name for cost in COSTS for name in (cost, f"{cost}_unpruned")),
)

Row = dict[str, Any]


class Results(NamedTuple):
    """The retrainings of a run.

    Attributes:
      rows: a row for each ticket, mode and settings, of the finished retrainings.
      unfinished: the number of those that have not finished.
      left_out: what is there and is not the result of a retraining, and why, a line each.
    """

    rows: list[Row]
    unfinished: int
    left_out: list[str]


def collect_results(run: RunDirectory) -> Results:
    """Collect the results of all finished retrainings of a run.

    A row is a ticket in a mode. Accuracies are those of the last round; the deviation is the sample's (n - 1) and empty
    for one seed. `test_accuracy_best_mean` is of the best evaluated round, which was chosen by test images, and so is
    too high; empty if one did not record it. `epochs` is the length of the retraining, `ticket_epoch` when the ticket
    was drawn; the costs are those of the first seed; `rules` is the name of the ticket's; `settings` is the hash of the
    config without its seed. A seed counts once: in the directory that
    has its name, and with seeds of the same settings.
    """
    epochs = {row["round"]: row.get("epoch") for row in run.rows()}
    run_hash = run.read_config().hash()
    series: dict[Any, list[Row]] = {}
    unfinished, left_out = 0, []
    for path in sorted(run.retrain.glob("*/*/seed*")):
        if seed_of(path.name) is None:
            left_out.append(f"{path}: is not named seedK, as a retraining's directory is; it counts as a copy")
            continue
        summary, problem = read_retraining(RunDirectory(path), run_hash)
        if summary is not None:
            series.setdefault((path.parent, summary["settings"]), []).append(summary)
        elif problem is None:
            unfinished += 1
        else:
            left_out.append(f"{problem}; the same retrain command makes it again")
    rows = [_row(summaries, epochs) for summaries in series.values()]
    rows.sort(key=lambda row: tuple(row[key] for key in _ORDER))
    return Results(rows, unfinished, left_out)


_ORDER = ("ratio", "scope", "norm", "rules", "ticket_round", "mode", "rewind_to", "settings")


def write_results(run: RunDirectory) -> list[Row]:
    """Collect all finished retrainings into retrain/results.csv. Returns its rows."""
    rows = collect_results(run).rows
    write_table(run.retrain / RESULTS, COLUMNS, rows)
    return rows


def print_results(run: RunDirectory, rows: Sequence[Row], rules: Iterable["Rules"] = ()) -> None:
    """Print rows of a run's results as a table; costs are shares of the unpruned network's.

    Args:
      rules: of the tickets in the rows; each is explained by a line under the table, and those without rules by none.
    """
    # Retrainings of earlier versions did not record it.
    best = ["best round"] if any(row["test_accuracy_best_mean"] is not None for row in rows) else []
    title = "test accuracy of the last round, mean ± sample deviation over seeds; / unpruned network's"
    headings = ("ticket", "mode", "epoch", "seeds", "accuracy", *best, "parameters", "FLOPs", "images/s")
    table = make_table(title, *headings, left=2)
    table.caption = "best round: mean over seeds; chosen by test images, and so too high" if best else None
    for row in rows:
        spread = "" if row["test_accuracy_std"] is None else f" ± {100 * row['test_accuracy_std']:.2f}"
        mode = f"{row['mode']} to {row['rewind_to']}" if row["rewind_to"] else row["mode"]
        shares = ["" if (share := cost_share(row, cost)) is None else f"{share:.2f}" for cost in COSTS]
        epoch = "" if row["ticket_epoch"] is None else f"{row['ticket_epoch']:.2f}"
        accuracy = f"{row['test_accuracy_mean']:.2%}{spread}"
        optimistic = row["test_accuracy_best_mean"]
        cells = ["" if optimistic is None else f"{optimistic:.2%}"] if best else []
        table.add_row(row["ticket"], mode, epoch, row["seeds"], accuracy, *cells, *shares)
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
    best = [summary["test/accuracy_best"] for summary in summaries if summary.get("test/accuracy_best") is not None]
    return {
        **{key: first[key] for key in FACTS},
        "rules": first.get("rules") or "",
        "epochs": first["epoch"] if first.get("epochs") is None else first["epochs"],
        "ticket_epoch": epochs.get(first["ticket_round"]),
        "seeds": " ".join(str(summary["seed"]) for summary in summaries),
        "test_accuracies": " ".join(str(accuracy) for accuracy in accuracies),
        "test_accuracy_mean": statistics.fmean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "test_accuracy_best_mean": statistics.fmean(best) if len(best) == len(summaries) else None,
        "test_loss_mean": statistics.fmean(summary["test/loss"] for summary in summaries),
        **{key: first[key] for cost in COSTS for key in (cost, f"{cost}_unpruned")},
    }


def cost_share(costs: Mapping[str, Any], key: str) -> float | None:
    """Return a cost as a share of the unpruned network's; None if it was not measured."""
    compact, unpruned = costs[key], costs[f"{key}_unpruned"]
    return None if compact is None or unpruned is None else compact / unpruned
