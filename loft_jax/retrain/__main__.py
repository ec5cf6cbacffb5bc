"""Retrain tickets of a run: python -m loft_jax.retrain RUN --ticket r40-group-l2-0.5

A ticket's network is built compact, gets its weights as --mode says, and is trained by plain SGD with the run's own
settings, which dotted options override. Each retraining has its own run directory RUN/retrain/TICKET/MODE/seedK:
finished retrainings are skipped, interrupted ones resume. RUN/retrain/results.csv has the results of all finished ones.

  rewind      the ticket, with the weights that its filters had at the start (or at --rewind_to ROUND)
  finetune    the ticket, with the weights of the snapshot it was drawn from
  lr_rewind   the same, with the learning rates of the run from --rewind_to ROUND on, and for the rounds that are left
controls:
  reinit      the ticket, with new initial weights
  random      as many filters of each group, drawn at random, with the weights they had at the start
  init        the ticket drawn from the norms of the initialisation, with the weights its filters had at the start

To see when the winning ticket appears, retrain the ticket of every k-th snapshot at one ratio (missing ones are drawn):

  python -m loft_jax.retrain RUN --every 2 --ratio 0.5

To train a ticket's trained weights on, with a schedule of their own:

  python -m loft_jax.retrain RUN --ticket r40-group-l2-0.5 --mode finetune --epochs 90 --optimizer.learning_rate 0.1 \
    --optimizer.schedule step --optimizer.milestones 11700,23400,31200
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from loft_jax.config import CommandLine, Config, Parser, run_command, whole_number
from loft_jax.console import duration, now_doing
from loft_jax.errors import RunStopped, UserError
from loft_jax.filters import NO_RULES, NORMS, SCOPES
from loft_jax.retrain.job import MODES, REWINDING, Job
from loft_jax.retrain.results import collect_results, print_results, write_results
from loft_jax.retrain.settings import retrain_config
from loft_jax.signals import Preemption
from loft_jax.storage import TICKET, RunDirectory, UnsoundError, check_installed
from loft_jax.tickets import (
    SearchFiles,
    Ticket,
    add_ticket_options,
    check_saved,
    load_ticket,
    ratio,
    rules_of,
    ticket_name,
)

# Modules that import JAX are imported where they are needed: a typo or a finished campaign is reported before that.


def main(argv: list[str] | None = None) -> None:
    command = CommandLine("python -m loft_jax.retrain", __doc__, reads_run="one")
    add_options(command.parser)
    options, overrides = command.parse_overrides(argv)
    run = RunDirectory(options.run)
    overrides |= rounds_of(options.epochs, overrides, run)
    config = retrain_config(run.read_config(), overrides)
    saved = run.snapshot_rounds()
    check_options(options, saved, config)
    names = draw_missing(run, config, options, saved) if options.every else dict.fromkeys(options.ticket)
    tickets = [load_ticket(run.tickets, name.rstrip("/")) for name in names]
    check_search(run, tickets)
    jobs = [
        Job.of(run, ticket, mode, options.rewind_to, config.model_copy(update={"seed": seed}))
        for seed in dict.fromkeys(options.seeds or [config.seed])
        for ticket in tickets
        for mode in dict.fromkeys(options.mode)
    ]
    for job in jobs:
        job.check()
    with Preemption() as preemption:
        stops = complete(run, config, jobs, preemption, timed=not options.untimed)
    rows = [row for row in write_results(run) if row["ticket"] in {t.name for t in tickets}]
    print_results(run, rows, [ticket.rules for ticket in tickets])
    for line in collect_results(run).left_out:
        print(f"left out  {line}")
    if stops:
        raise RunStopped("\n       ".join(stops))


def add_options(parser: Parser) -> None:
    """Add the command's own options to its parser."""
    add = parser.add_argument
    add("--ticket", metavar="NAME", nargs="+", help="tickets drawn by python -m loft_jax.tickets RUN")
    add("--every", metavar="K", type=whole_number(1), help="instead: tickets of every K-th snapshot, and of the last")
    add("--ratio", type=ratio, help="with --every: share of the filters removed; it also takes the "
        "rules of --help rules")  # fmt: skip
    add_ticket_options(parser)
    modes = f"one or more of {', '.join(MODES)}; --help all explains them (default: rewind)"
    add("--mode", metavar="MODE", choices=MODES, nargs="+", default=["rewind"], help=modes)
    add("--rewind_to", metavar="ROUND", type=whole_number(0), default=0, help="round of the weights, or with lr_rewind "
        "of the\nlearning rate (default: 0)")  # fmt: skip
    add("--epochs", metavar="N", type=whole_number(1), help="instead of --train.rounds: as many rounds as N passes "
        "over the\ntraining images need")  # fmt: skip
    add("--untimed", action="store_true", help="do not time a step of ticket and unpruned network, which compiles both")
    add("--seeds", metavar="K", type=whole_number(0), nargs="+", help="a retraining for each (default: the run's seed)")


def rounds_of(epochs: int | None, overrides: Mapping[str, str], run: RunDirectory) -> dict[str, str]:
    """Return the setting of --epochs, {} without it. Raises UserError if rounds are given too, or data not known."""
    if epochs is None:
        return {}
    if "train.rounds" in overrides:
        raise UserError(f"--epochs {epochs}: is another way to give --train.rounds; leave one of them out")
    examples = (run.data_identity() or {}).get("training_images")
    if examples is None:
        raise UserError(f"--epochs {epochs}: {run.path} does not say how many images it has; use --train.rounds")
    # The others may not fit the run's own rounds.
    length = {key: overrides[key] for key in ("loft.local_steps", "data.batch_size") if key in overrides}
    one_round = retrain_config(run.read_config(), length).epochs(1, examples)
    return {"train.rounds": str(math.ceil(epochs / one_round - 1e-9))}


def check_search(run: RunDirectory, tickets: Sequence[Ticket]) -> None:
    """Raise UserError if a ticket keeps other filters than the run's search found; a damaged search says nothing."""
    with suppress(UnsoundError):
        if search := SearchFiles.read(run, run.read_config().hash()):
            for ticket in tickets:
                search.check_agrees(ticket)


def check_options(options: argparse.Namespace, saved: Sequence[int], config: Config) -> None:
    """Raise UserError if the options do not fit together, or do not fit the run's saved rounds or the settings."""
    if bool(options.ticket) == bool(options.every):
        raise UserError("give either --ticket NAME (python -m loft_jax.tickets RUN draws them) or --every K --ratio R")
    if bool(options.every) != (options.ratio is not None):
        raise UserError(
            "--every K and --ratio R go together: every K-th snapshot's ticket at that ratio; try --ratio 0.5"
        )
    if options.ticket and (options.scope or options.norm or rules_of(options) != NO_RULES):
        raise UserError("--scope and --norm go with --every, as do rules; a ticket's NAME already contains them")
    if any(mode in REWINDING for mode in options.mode):
        check_saved("--rewind_to", [options.rewind_to], saved)
    for mode in options.mode:
        if mode == "lr_rewind":
            check_learning_rates(options.rewind_to, config)
        elif options.rewind_to and mode not in REWINDING:
            raise UserError(f"--rewind_to {options.rewind_to}: {mode} does not rewind; leave it out")
        if options.every and (mode == "init" or (mode == "random" and options.scope != "global")):
            raise UserError(f"--mode {mode}: is the same network for every snapshot; retrain it once, with --ticket")


def check_learning_rates(rewind_to: int, config: Config) -> None:
    """Raise UserError if no training can begin with the learning rate of this round."""
    if rewind_to >= config.train.rounds:
        raise UserError(
            f"--rewind_to {rewind_to}: lr_rewind trains the rounds that are left after it, and the schedule has "
            f"train.rounds={config.train.rounds}; try {config.train.rounds - 1}"
        )
    if rewind_to and config.optimizer.name != "sgd":
        raise UserError(
            f"--mode lr_rewind: begins in the middle of the run with moments that are zero, which "
            f"optimizer.name={config.optimizer.name} corrects at the beginning only; use finetune, or "
            "--optimizer.name sgd"
        )


def draw_missing(run: RunDirectory, config: Config, options: argparse.Namespace, saved: Sequence[int]) -> list[str]:
    """Draw the missing tickets of every k-th snapshot and of the last. Returns the names of all of them."""
    scope, norm = options.scope or SCOPES[0], options.norm or NORMS[0]
    rounds, rules = sorted({*saved[:: options.every], saved[-1]}), rules_of(options)
    names = {ticket_name(r, scope, norm, options.ratio, rules.name): r for r in rounds}
    missing = {name: r for name, r in names.items() if not (run.tickets / name / TICKET).exists()}
    if missing:
        from loft_jax.devices import configure_jax

        configure_jax(config)
        from loft_jax.tickets import Snapshots, load_own_data

        snapshots = Snapshots(run, partial(load_own_data, run, config.data))
        snapshots.check_rules(rules)
        for name, round_number in missing.items():
            scores = snapshots.scores(round_number, norm, rules.score_batches)
            snapshots.ticket(scores, round_number, options.ratio, scope, norm, rules).write(run.tickets / name)
    return list(names)


def complete(
    run: RunDirectory,
    config: Config,
    jobs: Sequence[Job],
    preemption: Preemption | None = None,
    *,
    timed: bool = True,
) -> list[str]:
    """Train the jobs that are not finished.

    Args:
      timed: whether to time a step of each ticket and of the unpruned network.

    Returns:
      A message for each job that stopped before its end; the other jobs are still trained.

    Raises:
      UserError: a ticket or a snapshot does not fit the model.
      Preempted: a stop was requested through `preemption`.
    """
    unfinished = [job for job in jobs if not job.is_finished()]
    if not unfinished:
        print(f"{run.retrain}: already complete")
        return []
    check_installed(config.train)
    from loft_jax.devices import configure_jax

    configure_jax(config)
    from loft_jax.retrain.retraining import Retraining

    retraining, start, stops = Retraining(run, config.data, timed=timed), time.perf_counter(), []
    for job in unfinished:
        retraining.check(job.ticket)
    for number, job in enumerate(unfinished):
        remaining = len(unfinished) - number
        if preemption and preemption.requested:
            raise preemption.stopped(f", {remaining} retrainings left")
        spent = time.perf_counter() - start
        time_left = f", {duration(spent / number * remaining)} left in all" if number else ""
        what = f"{job.ticket.name}, {job.mode}, seed {job.config.seed}"
        now_doing("building the network" + ", and timing it beside the unpruned one" * timed)
        print(f"job       {number + 1}/{len(unfinished)}: {what}{time_left}", flush=True)
        job.directory.open(job.config, job.what)
        try:
            job.directory.write_summary(retraining.run(job, preemption))
        except RunStopped as stop:
            stops.append(f"{job.directory.path}: {stop}")
            print(f"stopped   {stop}", flush=True)
        finally:
            job.directory.close()
        write_results(run)
    return stops


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; run the same command again to resume from the last checkpoint")
