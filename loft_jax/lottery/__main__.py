"""Prune a network iteratively: python -m loft_jax.lottery --config lottery_lenet300_fashion --workdir runs/lenet

Level 0 trains the whole network. Each further level removes a share of the smallest weights that are left, sets the
others back to the values that they had at the start of level 0 (or at lottery.rewind_to), and trains them again. The
controls of lottery.controls are trained beside each level.

Each training has its own run directory, RUN/seedK/levelN/CONTROL, with the masks it was trained with. Run the same
command again to go on: finished trainings are skipped, an interrupted one resumes. Several processes may train in one
RUN, each other --seeds.

RUN/levels.csv has the results. The early step is that of least validation loss, judged afterwards.
python -m loft_jax.report RUN --out DIR draws the curves.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import yaml

from loft_jax.config import CommandLine, path_name, read_yaml, run_command, whole_number
from loft_jax.console import duration
from loft_jax.errors import RunStopped, UserError, format_value
from loft_jax.files import write_atomically
from loft_jax.lottery.results import LEVELS, SETTINGS, print_levels, write_levels
from loft_jax.lottery.settings import LotteryConfig
from loft_jax.lottery.training import TICKET, Training, trainings
from loft_jax.signals import Preemption
from loft_jax.storage import CONFIG, RunDirectory, check_installed

# Modules that import JAX are imported where they are needed: a typo or a finished lottery is reported before that.

# What may differ when a lottery goes on.
_RESUMABLE = ("levels", "controls")


def main() -> None:
    command = CommandLine("python -m loft_jax.lottery", __doc__, LotteryConfig)
    add_options(command.parser)
    options, config = command.parse()
    name = Path(options.config).stem if options.config else "lottery"
    directory = RunDirectory(Path("runs") / name if options.workdir is None else options.workdir, "--workdir")
    open_lottery(directory, config)
    with Preemption() as preemption:
        stops = complete(directory.path, config, list(dict.fromkeys(options.seeds or [config.seed])), preemption)
    print_levels(write_levels(directory.path))
    print(f"written   {directory.path / LEVELS}", flush=True)
    if stops:
        raise RunStopped("\n       ".join(stops))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options to its parser."""
    add = parser.add_argument
    add("--workdir", metavar="RUN", type=path_name, help="directory of the lottery (default: runs/NAME_OF_CONFIG)")
    add("--seeds", metavar="K", type=whole_number(0), nargs="+", help="all levels for each (default: the setting seed)")


def open_lottery(directory: RunDirectory, config: LotteryConfig) -> None:
    """Open the directory, write the settings, and close it: several processes may train, each other seeds.

    Raises:
      UserError: it cannot be used, or holds something else, or a lottery with other settings.
    """
    file = directory.path / SETTINGS
    if directory.started and (directory.path / CONFIG).exists() and not file.exists():
        raise UserError(f"--workdir {directory.path}: holds a run of another command; use another directory")
    with closing(directory):
        directory.open(config.training(0))
        _agree_on_levels(directory, config, file)


def _agree_on_levels(directory: RunDirectory, config: LotteryConfig, file: Path) -> None:
    now = config.lottery.model_dump()
    before = read_yaml(file, str(file)) if file.exists() else now
    differing = [key for key in now if key not in _RESUMABLE and before.get(key) != now[key]]
    if differing:
        fields = "; ".join(
            f"lottery.{key}: {format_value(before.get(key))} there, {format_value(now[key])} now" for key in differing
        )
        raise UserError(
            f"--workdir {directory.path}: holds a lottery with other settings ({fields}); use another directory, "
            "delete this one, or use the settings it was made with"
        )
    write_atomically(file, yaml.safe_dump(now, sort_keys=False))


def complete(run: Path, config: LotteryConfig, seeds: Sequence[int], preemption: Preemption | None = None) -> list[str]:
    """Do the trainings that are not finished.

    Returns:
      A message for each training that stopped before its end. A seed ends with its ticket; without a control, the
      others are still trained.

    Raises:
      UserError: settings, network and data do not fit each other.
      Preempted: a stop was requested through `preemption`.
    """
    unfinished = [training for training in trainings(run, config, seeds) if training.directory.summary() is None]
    if not unfinished:
        print(f"{run}: already complete")
        return []
    check_installed(config.train)
    from loft_jax.devices import configure_jax

    configure_jax(config)
    from loft_jax.lottery.chain import Chain

    start, stops = time.perf_counter(), []
    for seed, some in itertools.groupby(enumerate(unfinished), key=lambda pair: pair[1].config.seed):
        chain = Chain(run, config, seed)
        for number, training in some:
            _announce(training, number, len(unfinished), time.perf_counter() - start)
            if preemption and preemption.requested:
                left = len(unfinished) - number
                raise preemption.stopped(f", {left} trainings left")
            try:
                with closing(training.directory) as directory:
                    directory.open(training.config, f"level {training.level}, {training.control}")
                    directory.write_summary(chain.run(training, preemption))
            except RunStopped as stop:
                stops.append(f"{training.directory.path}: {stop}")
                print(f"stopped   {stop}", flush=True)
                if training.control == TICKET:
                    break  # Further levels would be made from this one.
            write_levels(run)
    return stops


def _announce(training: Training, number: int, count: int, spent: float) -> None:
    left = f", {duration(spent / number * (count - number))} left in all" if number else ""
    print(f"training  {number + 1}/{count}: {training.name}{left}", flush=True)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; run the same command again to resume from the last checkpoint")
