"""Pretrain: python -m loft_jax.train --config configs/digits.yaml --workdir runs/digits

By LoFT, local SGD, plain SGD or GPipe, as the settings say. The same command run again resumes from the newest
checkpoint; a finished run says so.
"""

from pathlib import Path
from typing import Any

from loft_jax.cli import CommandLine, run_command
from loft_jax.config import Config
from loft_jax.run_directory import RunDirectory
from loft_jax.summary import print_summary

# What imports JAX is imported where it is needed: a typo, a refusal and a finished run are told before JAX is loaded.


def main() -> None:
    command = CommandLine("python -m loft_jax.train", __doc__)
    command.parser.add_argument("--workdir", metavar="RUN", help="run directory (default: runs/NAME_OF_CONFIG)")
    command.parser.add_argument(
        "--dry_run", action="store_true", help="compile one round, print sizes, memory and bytes, and write nothing"
    )
    arguments, config = command.parse()
    if arguments.dry_run:
        dry_run(config)
        return
    name = Path(arguments.config).stem if arguments.config else "default"
    workdir = Path("runs") / name if arguments.workdir is None else arguments.workdir
    directory = RunDirectory(workdir, "--workdir")
    directory.open(config)
    if summary := directory.summary():
        print(f"{directory.path}: already complete")
        print_summary(summary)
        return
    from loft_jax.experiment import configure_jax

    configure_jax(config)
    run(config, directory)


def dry_run(config: Config) -> None:
    """Everything up to compiling one round; prints sizes, memory and bytes."""
    import jax

    from loft_jax.experiment import Experiment, configure_jax
    from loft_jax.overview import print_programs, print_setup

    configure_jax(config)
    experiment = Experiment.build(config)
    print_setup(experiment)
    state = jax.eval_shape(experiment.round.place, experiment.state_shapes())
    lowered = experiment.round.lowered(state, experiment.images, experiment.labels)
    print_programs({name: program.compile() for name, program in lowered.items()})


def run(config: Config, directory: RunDirectory) -> dict[str, Any]:
    """Train to the last round in an opened directory, from its newest checkpoint if it has one. Returns the summary.

    Raises:
      UserError: model, data or devices do not fit the config.
      RunStopped: the loss is no longer finite.
    """
    from loft_jax.experiment import Experiment
    from loft_jax.overview import print_setup
    from loft_jax.trainer import train_to_the_end

    experiment = Experiment.build(config)
    print_setup(experiment)
    summary = train_to_the_end(experiment, directory)
    directory.write_summary(summary)
    print_summary(summary)
    return summary


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; the same command resumes from the last checkpoint")
