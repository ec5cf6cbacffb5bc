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
from collections.abc import Mapping, Sequence

from loft_jax.config import CommandLine, Config, GPipe, apply_overrides, run_command, whole_number
from loft_jax.console import duration
from loft_jax.devices import Preemption
from loft_jax.errors import Preempted, RunStopped, UserError
from loft_jax.filters import NORMS, SCOPES
from loft_jax.retrain.job import MODES, REWINDING, Stage
from loft_jax.retrain.results import print_results, write_results
from loft_jax.storage import RunDirectory
from loft_jax.tickets import FILE, add_ticket_options, check_saved, load_ticket, ratio, ticket_name

# What imports JAX is imported where it is needed: a typo and a finished campaign are told before JAX is loaded.

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
    "loft.momentum": "there is one worker, whose momentum is its own",
    "gpipe.": "a ticket is retrained by plain SGD",
    "train.stop": "a retraining ends with its last round",
    "train.snapshot": "a retraining takes no snapshots",
    "mesh.worker": "there is one worker; mesh.data spreads its batch",
    "distributed": "a ticket is retrained by one process",
}


def main() -> None:
    command = CommandLine("python -m loft_jax.retrain", __doc__, reads_run="one")
    add_options(command.parser)
    options, overrides = command.parse_overrides()
    run = RunDirectory(options.run)
    config = retrain_config(run.read_config(), overrides)
    saved = run.snapshot_rounds()
    check_options(options, saved)
    names = draw_missing(run, config, options, saved) if options.every else dict.fromkeys(options.ticket)
    tickets = [load_ticket(run.tickets, name.rstrip("/")) for name in names]
    stages = [
        Stage.of(run, ticket, mode, options.rewind_to, config.model_copy(update={"seed": seed}))
        for seed in dict.fromkeys(options.seeds or [config.seed])
        for ticket in tickets
        for mode in dict.fromkeys(options.mode)
    ]
    for stage in stages:
        stage.check()
    with Preemption() as preemption:
        stops = complete(run, config, stages, preemption)
    print_results(run, [row for row in write_results(run) if row["ticket"] in {t.name for t in tickets}])
    if stops:
        raise RunStopped("\n       ".join(stops))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add = parser.add_argument
    add("--ticket", metavar="NAME", nargs="+", help="tickets drawn by python -m loft_jax.tickets RUN")
    add("--every", metavar="K", type=whole_number(1), help="instead: every K-th snapshot's ticket, and the last one's")
    add("--ratio", type=ratio, help="with --every: share of the filters removed; --scope and --norm as well")
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
    if options.ticket and (options.scope or options.norm):
        raise UserError("--scope and --norm go with --every; a ticket's NAME already says its own")
    check_saved("--rewind_to", [options.rewind_to], saved)
    for mode in options.mode:
        if options.rewind_to and mode not in REWINDING:
            raise UserError(f"--rewind_to {options.rewind_to}: {mode} does not rewind; leave it out")
        if options.every and (mode == "init" or (mode == "random" and options.scope != "global")):
            raise UserError(f"--mode {mode}: is the same network for every snapshot; retrain it once, with --ticket")


def retrain_config(run: Config, overrides: Mapping[str, str]) -> Config:
    """The run's settings for one worker, overridden. Raises UserError."""
    for key in overrides:
        for fixed, reason in _FIXED.items():
            if key.startswith(fixed):
                raise UserError(f"--{key}: cannot be changed for a retraining: {reason}")
    settings = run.model_dump()
    settings["loft"] |= {"workers": 1, "sync": "psum", "momentum": "carry"}
    settings["gpipe"] = GPipe().model_dump()
    settings["mesh"]["worker"], settings["train"]["stop_when"] = None, None
    return apply_overrides(settings, dict(overrides), source="command line")


def draw_missing(run: RunDirectory, config: Config, options: argparse.Namespace, saved: Sequence[int]) -> list[str]:
    """Names of the tickets of every k-th snapshot and the last; drawn where they are not there yet."""
    scope, norm = options.scope or SCOPES[0], options.norm or NORMS[0]
    rounds = sorted({*saved[:: options.every], saved[-1]})
    names = {ticket_name(r, scope, norm, options.ratio): r for r in rounds}
    missing = {name: r for name, r in names.items() if not (run.tickets / name / FILE).exists()}
    if missing:
        from loft_jax.devices import configure_jax

        configure_jax(config)
        from loft_jax.tickets import Snapshots

        snapshots = Snapshots(run)
        for name, round_number in missing.items():
            scores = snapshots.scores(round_number, norm)
            snapshots.ticket(scores, round_number, options.ratio, scope, norm).write(run.tickets / name)
    return list(names)


def complete(
    run: RunDirectory, config: Config, stages: Sequence[Stage], preemption: Preemption | None = None
) -> list[str]:
    """Train the stages that are not done yet.

    Returns:
      What stopped the stages that could not be trained to the end; they do not keep the others from it.

    Raises:
      UserError: a ticket or a snapshot does not fit the model.
      Preempted: `preemption` asked to leave.
    """
    left = [stage for stage in stages if stage.directory.summary() is None]
    if not left:
        print(f"{run.retrain}: already complete")
        return []
    from loft_jax.devices import configure_jax

    configure_jax(config)
    from loft_jax.retrain.retraining import Retraining

    retraining, start, stops = Retraining(run, config.data), time.perf_counter(), []
    for stage in left:
        retraining.check(stage.ticket)
    for number, stage in enumerate(left):
        if preemption and preemption.requested:
            raise Preempted(f"stopped   by SIGTERM, {len(left) - number} retrainings left; the same command goes on")
        spent = time.perf_counter() - start
        time_left = f", {duration(spent / number * (len(left) - number))} left in all" if number else ""
        what = f"{stage.ticket.name}, {stage.mode}, seed {stage.config.seed}"
        print(f"stage     {number + 1}/{len(left)}: {what}{time_left}", flush=True)
        stage.directory.open(stage.config)
        try:
            stage.directory.write_summary(retraining.run(stage, preemption))
        except RunStopped as stop:
            stops.append(f"{stage.directory.path}: {stop}")
            print(f"stopped   {stop}", flush=True)
        finally:
            stage.directory.close()
        write_results(run)
    return stops


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; the same command goes on from the last checkpoint")
