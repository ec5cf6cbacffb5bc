"""The summary of a retraining, checked against the directory that it is in. Imports neither JAX nor NumPy."""

from typing import Any

from loft_jax.errors import UserError
from loft_jax.storage import CONFIG, TICKET, RunDirectory
from loft_jax.tickets import read_ticket, ticket_name

Row = dict[str, Any]

FACTS = ("ticket", "mode", "rewind_to", "ticket_round", "ratio", "scope", "norm", "rounds", "settings")
COSTS = ("parameters", "flops_per_image", "steps_images_per_second")
_SPEEDS = ("steps_images_per_second", "steps_images_per_second_unpruned")
_NEEDED = (*FACTS, *COSTS, *(f"{cost}_unpruned" for cost in COSTS))


def mode_name(mode: str, rewind_to: int) -> str:
    """Return the name of a mode's directory: the mode, with the round where that is not 0."""
    return f"{mode}-r{rewind_to}" if rewind_to else mode


def read_retraining(directory: RunDirectory, run_hash: str) -> tuple[Row | None, str | None]:
    """Read the summary of the retraining in RUN/retrain/TICKET/MODE/seedK.

    Args:
      directory: of the retraining.
      run_hash: hash of the config of RUN.

    Returns:
      The summary, and None; or None, and why what is there is not the summary of this retraining; or None twice where
      it has not finished.
    """
    path = directory.path
    try:
        summary = directory.summary()
        if summary is None:
            return None, directory.summary_problem()
        problem = _problem(directory, summary, run_hash)
    except UserError as error:
        return None, str(error)
    return (summary, None) if problem is None else (None, f"{path}: {problem}")


def _problem(directory: RunDirectory, summary: Row, run_hash: str) -> str | None:
    lacking = [key for key in _NEEDED if key not in summary or (summary[key] is None and key not in _SPEEDS)]
    if lacking:
        return f"summary.json holds no {lacking[0]}, which that of a retraining has"
    path = directory.path
    pruning = (summary["scope"], summary["norm"], summary["ratio"], summary.get("rules") or "")
    name = ticket_name(summary["ticket_round"], *pruning)
    named = (name, mode_name(summary["mode"], summary["rewind_to"]), f"seed{summary['seed']}")
    if named != path.parts[-3:] or summary["ticket"] != name:
        return f"summary.json is that of another retraining, {'/'.join(named)}"
    if summary.get("run_config_hash") not in (None, run_hash):
        return f"is a retraining of another run (config {summary['run_config_hash']}; this run's is {run_hash})"
    if (path / TICKET).exists() and (found := read_ticket(path, "retrain it again").config_hash) != run_hash:
        return f"is a retraining of another run (config {found}; this run's is {run_hash})"
    if (path / CONFIG).exists():
        config = directory.read_config()
        if config.model_copy(update={"seed": 0}).hash() != summary["settings"]:
            return "summary.json is that of other settings than its config.yaml"
        first_round = summary["rewind_to"] if summary["mode"] == "lr_rewind" else 0
        if summary["rounds"] + first_round != config.train.rounds:
            return f"summary.json has {summary['rounds']} rounds, and config.yaml {config.train.rounds}"
    return None
