"""Pretrain: python -m loft_jax.train --config configs/digits.yaml --workdir runs/digits

The settings choose LoFT, local SGD, plain SGD or GPipe. Run the same command again to resume from the newest
checkpoint; if the run is finished, its summary is printed again.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

from loft_jax.config import CommandLine, Config, path_name, run_command
from loft_jax.console import duration, now_doing
from loft_jax.devices import check_visible, connect_processes, run_on_first
from loft_jax.errors import UserError
from loft_jax.signals import Preemption
from loft_jax.storage import CONFIG, PHASES, RunDirectory, describe_rounds

# Modules that import JAX are imported where they are needed: a typo, a refusal and a finished run are reported before.


def main() -> None:
    command = CommandLine("python -m loft_jax.train", __doc__)
    add = command.parser.add_argument
    add("--workdir", metavar="RUN", type=path_name, help="run directory (default: runs/NAME_OF_CONFIG)")
    add("--dry_run", action="store_true", help="compile one round, print sizes, memory and bytes, and write nothing")
    arguments, config = command.parse()
    if arguments.dry_run:
        if config.distributed.is_enabled:
            raise UserError("--dry_run looks at the devices of one process only; leave out --distributed")
        dry_run(config)
        return
    name = Path(arguments.config).stem if arguments.config else "default"
    directory = RunDirectory(Path("runs") / name if arguments.workdir is None else arguments.workdir, "--workdir")
    with connect_processes(config) as processes, Preemption() as preemption, closing(directory):
        directory.writes = processes.is_first
        complete = run_on_first(processes, lambda: is_complete(directory, config))
        check_visible(processes, directory.path / CONFIG)
        if not complete:
            configure(config)
            run(config, directory, preemption)


def is_complete(directory: RunDirectory, config: Config) -> bool:
    """Open the directory, and print the summary of its run if that is finished. Raises UserError as `open`."""
    directory.open(config)
    summary = directory.summary()
    if summary:
        print(f"{directory.path}: already complete")
        print_summary(summary)
    return summary is not None


def configure(config: Config) -> None:
    """Load JAX, and make the settings that it needs before it looks for devices."""
    now_doing("loading JAX")
    from loft_jax.devices import configure_jax

    configure_jax(config)
    now_doing("reading the data, building the network")


def dry_run(config: Config) -> None:
    """Do everything up to compiling one round; prints sizes, memory and bytes."""
    configure(config)
    from loft_jax.train.experiment import Experiment
    from loft_jax.train.overview import print_programs, print_setup

    experiment = Experiment.build(config)
    print_setup(experiment)
    now_doing("compiling one round")
    print_programs(experiment.bill.compiled())


def run(config: Config, directory: RunDirectory, preemption: Preemption | None = None) -> dict[str, Any]:
    """Train to the last round in an opened directory, from its newest checkpoint if it has one.

    Returns:
      The summary; {} in a process that does not write the directory.

    Raises:
      UserError: model, data or devices do not fit the config, or every checkpoint is damaged.
      RunStopped: the loss is no longer finite, or a file cannot be written.
      Preempted: `preemption` asked the run to stop.
    """
    from loft_jax.train.experiment import Experiment
    from loft_jax.train.overview import print_setup
    from loft_jax.train.trainer import train_to_the_end

    experiment = Experiment.build(config)
    print_setup(experiment)
    summary = train_to_the_end(experiment, directory, preemption=preemption)
    if summary:
        summary = directory.write_summary(summary)
        print_summary(summary)
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """Print summary.json as a few lines."""
    extent = f"{summary['round']} rounds, {summary['epoch']:.1f} epochs"
    print(f"finished  {summary['model']} on {summary['data']}, {summary['method']}: {extent}")
    if summary.get("stopped"):
        print(f"stopped   {summary['stopped']}")
    print(f"accuracy  {summary['test/accuracy']:.2%} on the test set (last round), loss {summary['test/loss']:.4f}")
    if summary.get("validation/accuracy") is not None:
        accuracy, loss = summary["validation/accuracy"], summary["validation/loss"]
        print(f"          {accuracy:.2%} on the images held out for validation, loss {loss:.4f}")
    print(f"measured  {_describe_seconds(summary)}")
    share = f"; {summary['share_of_peak']:.1%} of the devices' peak" if summary.get("share_of_peak") else ""
    speed = summary["images_per_second"]
    text = "is not known" if speed is None else f"{speed:,.0f} images/s in training rounds, all workers{share}"
    print(f"speed     {text}", flush=True)


def _describe_seconds(summary: dict[str, Any]) -> str:
    seconds = {phase: summary[f"seconds/{phase}"] for phase in PHASES}
    if None in seconds.values():
        lost = summary.get("rounds_without_rows")
        return "is not known" + (f", because the rows of rounds {describe_rounds(lost)} are lost" if lost else "")
    split = ", ".join(f"{phase} {duration(value)}" for phase, value in seconds.items())
    return f"{duration(sum(seconds.values()))}: {split}"


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; run the same command again to resume from the last checkpoint")
