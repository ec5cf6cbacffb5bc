"""The commands that make what a report shows once more, as they can be pasted into a shell."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from loft_jax.config import flatten, read_yaml
from loft_jax.errors import UserError, offer
from loft_jax.filters import NO_RULES, Rules
from loft_jax.lottery import SETTINGS
from loft_jax.report.page import Part
from loft_jax.report.run_files import Row, RunFiles, cost_command
from loft_jax.retrain import mode_name, retrain_config
from loft_jax.storage import CONFIG, RunDirectory, seed_of
from loft_jax.tickets import SearchFiles


def commands_part(runs: Sequence[RunFiles], lotteries: Sequence[Path], inputs: Sequence[Path], out: Path) -> Part:
    """Make the part of the commands: of the runs, of the lotteries in these directories, and of the report itself.

    Args:
      runs, lotteries: what the report shows.
      inputs: their directories, in the order of the report's command.
      out: directory of the report.
    """
    lines = [line for run in runs for line in _commands_of(run)]
    for path in lotteries:
        with suppress(UserError):  # Its settings cannot be read, so no command has them.
            lines.append(_lottery_command(path))
    return Part("Commands", commands=[*lines, offer("report", *inputs, "--out", out)])


def _commands_of(run: RunFiles) -> Iterator[str]:
    path = run.directory.path
    yield offer("train", "--config", path / CONFIG, "--workdir", path)
    if run.search:
        yield offer("tickets", path, *_search_options(path, run.search))
    campaigns: dict[tuple[str, ...], list[str]] = {}
    for row in run.retrained:
        campaigns.setdefault(_retraining_options(run.directory, row), []).append(row["ticket"])
    for options, tickets in campaigns.items():
        yield offer("retrain", path, "--ticket", *tickets, *options)
    if run.costs:
        yield cost_command(run.directory)


def _search_options(path: Path, search: SearchFiles) -> Iterator[str]:
    given = search.options
    yield from ("--ratios", *(f"{ratio:g}" for ratio in given["ratios"]))
    yield from ("--scope", given["scope"], "--norm", given["norm"], *_rules_options(given["made_by"]))
    if not search.own_end:
        yield f"--reference={path / given['reference']}@{given['reference_round']}"


def _rules_options(rules: Rules) -> Iterator[str]:
    if rules.ratios:
        yield from ("--group_ratios", *(f"{pattern}={ratio:g}" for pattern, ratio in rules.ratios))
    if rules.keep_whole:
        yield from ("--keep_whole", *rules.keep_whole)
    for name in ("at_least", "round_to", "score_batches", "groups"):
        if (value := getattr(rules, name)) != getattr(NO_RULES, name):
            yield from (f"--{name}", str(value))


def _retraining_options(run: RunDirectory, row: Row) -> tuple[str, ...]:
    options = ["--mode", row["mode"], "--seeds", *row["seeds"].split()]
    options += ["--rewind_to", str(row["rewind_to"])] if row["rewind_to"] else []
    return (*options, *(f"--{key}={_text(value)}" for key, value in _changed(run, row).items()))


def _changed(run: RunDirectory, row: Row) -> Mapping[str, Any]:
    """Dotted key -> value of the settings of a retraining that are not its run's; {} if they cannot be read."""
    seed = row["seeds"].split()[0]
    with suppress(UserError):
        trained = RunDirectory(run.retrain / row["ticket"] / mode_name(row["mode"], row["rewind_to"]) / f"seed{seed}")
        usual = flatten(retrain_config(run.read_config(), {}))
        settings = flatten(trained.read_config())
        return {key: value for key, value in settings.items() if key != "seed" and value != usual[key]}
    return {}


def _lottery_command(path: Path) -> str:
    seeds = sorted(seed for found in path.glob("seed*") if (seed := seed_of(found.name)) is not None)
    settings = read_yaml(path / SETTINGS, str(path / SETTINGS))
    options = [f"--lottery.{key}={_text(value)}" for key, value in settings.items()]
    numbers = ["--seeds", *map(str, seeds)] if seeds else []
    return offer("lottery", "--config", path / CONFIG, "--workdir", path, *options, *numbers)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
