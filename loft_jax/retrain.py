"""Retrain tickets of a run: python -m loft_jax.retrain RUN --ticket r40-group-l2-0.5

A ticket's network is built compact, takes its weights as --mode says, and is trained by plain SGD with the run's own
settings, which dotted options override. Each retraining is a directory RUN/retrain/TICKET/MODE/seedK like a run's own:
what is finished is skipped, what was interrupted goes on. RUN/retrain/results.csv collects all that are finished.

  rewind      the ticket, with the weights that its filters had at the start (or at --rewind_to ROUND)
  finetune    the ticket, with the weights of the snapshot it was drawn from
controls:
  reinit      the ticket, with new initial weights
  random      as many filters of each group, drawn at random, with the weights they had at the start
  init        the ticket that the norms of the initialisation give, with the weights its filters had at the start

Every k-th snapshot's ticket at one ratio, to see when the winning one has appeared (they need not be drawn before):

  python -m loft_jax.retrain RUN --every 2 --ratio 0.5
"""

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loft_jax.cli import CommandLine, overridden, ratio, run_command, whole_number
from loft_jax.config import Config
from loft_jax.errors import UserError
from loft_jax.results import print_results, write_results
from loft_jax.run_directory import RunDirectory
from loft_jax.summary import duration
from loft_jax.ticket import FILE, Ticket, load_ticket, ticket_name
from loft_jax.tickets import add_ticket_options, check_saved

# What imports JAX is imported where it is needed: a typo and a finished campaign are told before JAX is loaded.

MODES = ("rewind", "finetune", "reinit", "random", "init")
_REWINDING = ("rewind", "random", "init")

# Settings that a retraining cannot have, and why.
_FIXED = {
    "model.": "a ticket belongs to its run's model",
    "data.name": "a ticket belongs to its run's data",
    "data.split": "there is one worker",
    "seed": "use --seeds",
    "loft.workers": "a ticket is retrained by plain SGD",
    "loft.partition": "there is one worker",
    "loft.sync": "there is one worker",
    "loft.rescale": "there is one worker",
    "train.stop": "a retraining ends with its last round",
    "train.snapshot": "a retraining takes no snapshots",
    "mesh.worker": "there is one worker; mesh.data spreads its batch",
}


@dataclass(frozen=True)
class Stage:
    """One retraining: of this ticket, in this mode, with this config, in this directory."""

    ticket: str
    mode: str
    config: Config
    directory: RunDirectory


def main() -> None:
    command = CommandLine("python -m loft_jax.retrain", __doc__, reads_run=True)
    add_options(command.parser)
    options, overrides = command.parse_overrides()
    run = RunDirectory(options.run)
    config = retrain_config(run.read_config(), overrides)
    saved = run.snapshot_rounds()
    check_options(options, saved)
    if options.every:
        draw_missing(run, config, options, rounds := sorted({*saved[:: options.every], saved[-1]}))
        names = [ticket_name(r, options.scope, options.norm, options.ratio) for r in rounds]
    else:
        names = list(dict.fromkeys(options.ticket))
    tickets = {name: load_ticket(run.tickets, name) for name in names}
    seeds = options.seeds or [config.seed]
    stages = [
        stage_of(run, config, name, mode, options.rewind_to, seed)
        for name in tickets
        for mode in dict.fromkeys(options.mode)
        for seed in dict.fromkeys(seeds)
    ]
    for stage in stages:
        if stage.directory.path.exists():
            stage.directory.open(stage.config, label="retraining")
    complete(run, config, stages, tickets, options.rewind_to)
    print_results([row for row in write_results(run) if row["ticket"] in tickets])


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add = parser.add_argument
    add("--ticket", metavar="NAME", nargs="+", help="tickets drawn by python -m loft_jax.tickets RUN")
    add("--every", metavar="K", type=whole_number(1), help="instead: every K-th snapshot's ticket, and the last one's")
    add("--ratio", type=ratio, help="with --every: share of the filters removed")
    add_ticket_options(parser)
    add("--mode", choices=MODES, nargs="+", default=["rewind"], help="one or more, see above (default: rewind)")
    add("--rewind_to", metavar="ROUND", type=whole_number(0), default=0, help="later than the start (default: 0)")
    add("--seeds", metavar="K", type=whole_number(0), nargs="+", help="of the retraining (default: the run's own)")


def check_options(options: argparse.Namespace, saved: Sequence[int]) -> None:
    """Raise UserError on what the options alone, and the run's saved rounds, tell to be wrong."""
    if bool(options.ticket) == bool(options.every):
        raise UserError("give either --ticket NAME (python -m loft_jax.tickets RUN draws them) or --every K --ratio R")
    if bool(options.every) != (options.ratio is not None):
        raise UserError(
            "--every K and --ratio R go together: every K-th snapshot's ticket at that ratio; try --ratio 0.5"
        )
    check_saved("--rewind_to", [options.rewind_to], saved)
    if options.rewind_to:
        for mode in set(options.mode) - set(_REWINDING):
            raise UserError(
                f"--rewind_to {options.rewind_to}: {mode} does not rewind; leave it out, or use --mode rewind"
            )


def retrain_config(run: Config, overrides: Mapping[str, str]) -> Config:
    """The run's settings for one worker, overridden. Raises UserError."""
    for key in overrides:
        for fixed, reason in _FIXED.items():
            if key.startswith(fixed):
                raise UserError(f"--{key}: cannot be changed for a retraining: {reason}")
    settings = run.model_dump()
    settings["loft"]["workers"], settings["mesh"]["worker"], settings["train"]["stop_when"] = 1, None, None
    return overridden(settings, dict(overrides), source="command line")


def stage_of(run: RunDirectory, config: Config, ticket: str, mode: str, rewind_to: int, seed: int) -> Stage:
    """A stage and its directory."""
    name = mode if not rewind_to else f"{mode}-r{rewind_to}"
    path = run.retrain / ticket / name / f"seed{seed}"
    return Stage(ticket, mode, config.model_copy(update={"seed": seed}), RunDirectory(path))


def draw_missing(run: RunDirectory, config: Config, options: argparse.Namespace, rounds: Sequence[int]) -> None:
    """Draw the tickets of these snapshots that are not there yet."""
    names = {ticket_name(r, options.scope, options.norm, options.ratio): r for r in rounds}
    missing = {name: r for name, r in names.items() if not (run.tickets / name / FILE).exists()}
    if not missing:
        return
    from loft_jax.experiment import configure_jax
    from loft_jax.snapshots import Snapshots

    configure_jax(config)
    snapshots = Snapshots(run)
    for name, round_number in missing.items():
        scores = snapshots.scores(round_number, options.norm)
        ticket = snapshots.ticket(scores, round_number, options.ratio, options.scope, options.norm)
        ticket.write(run.tickets / name)


def complete(
    run: RunDirectory, config: Config, stages: Iterable[Stage], tickets: Mapping[str, Ticket], rewind_to: int
) -> None:
    """Train what is not finished yet."""
    left = [stage for stage in stages if stage.directory.summary() is None]
    if not left:
        print(f"{run.retrain}: already complete")
        return
    from loft_jax.experiment import configure_jax
    from loft_jax.retraining import Retraining

    configure_jax(config)
    retraining, start = Retraining(run, config.data.data_dir), time.perf_counter()
    for ticket in tickets.values():
        retraining.check(ticket)
    for number, stage in enumerate(left):
        spent = time.perf_counter() - start
        time_left = f", {duration(spent / number * (len(left) - number))} left in all" if number else ""
        print(f"stage     {number + 1}/{len(left)}: {stage.ticket}, {stage.mode}, seed {stage.config.seed}{time_left}")
        stage.directory.open(stage.config, label="retraining")
        summary = retraining.run(tickets[stage.ticket], stage.mode, rewind_to, stage.config, stage.directory)
        stage.directory.write_summary(summary)
        write_results(run)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; the same command goes on from the last checkpoint")
