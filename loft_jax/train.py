"""Pretrain with LoFT: python -m loft_jax.train --config configs/digits.yaml --workdir runs/digits

The same command run again resumes from the newest checkpoint; a finished run says so.
"""

import math
from pathlib import Path
from typing import Any

from loft_jax.cli import CommandLine, run_command
from loft_jax.config import Config
from loft_jax.errors import RunStopped
from loft_jax.run_directory import RunDirectory


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
    directory = RunDirectory(arguments.workdir or Path("runs") / name)
    directory.open(config)
    if summary := directory.summary():
        from loft_jax.summary import print_summary

        print(f"{directory.path}: already complete")
        print_summary(summary)
        return
    from loft_jax.setup import configure_jax

    configure_jax(config)
    run(config, directory)


def dry_run(config: Config) -> None:
    """Everything up to compiling one round; prints sizes, memory and bytes."""
    from loft_jax.setup import Experiment, configure_jax
    from loft_jax.summary import print_programs, print_setup

    configure_jax(config)
    experiment = Experiment.build(config)
    print_setup(experiment)
    programs = experiment.round.compiled(experiment.initial_state(), experiment.images, experiment.labels)
    print_programs(programs)


def run(config: Config, directory: RunDirectory) -> dict[str, Any]:
    """Train to the last round in an opened directory, from its newest checkpoint if it has one. Returns the summary.

    Raises:
      UserError: model, data or devices do not fit the config.
      RunStopped: the loss is no longer finite.
    """
    from loft_jax.progress import TrainingProgress
    from loft_jax.setup import Experiment
    from loft_jax.summary import print_setup, print_summary, summarise

    experiment = Experiment.build(config)
    print_setup(experiment)
    print(f"workdir   {directory.path}", flush=True)
    with Trainer(experiment, directory) as trainer:
        done = trainer.start()
        with TrainingProgress(config.train.rounds, done) as progress:
            for _ in range(done, config.train.rounds):
                progress.update(trainer.train_one_round())
    summary = summarise(experiment, directory.rows())
    directory.write_summary(summary)
    print_summary(summary)
    return summary


class Trainer:
    """A run in progress: the state, and what is done after each round. Use as a context manager."""

    def __init__(self, experiment: Any, directory: RunDirectory):
        from loft_jax.checkpoint import Store
        from loft_jax.stopwatch import Stopwatch

        self._experiment, self._config, self._directory = experiment, experiment.config, directory
        self._checkpoints = Store(directory.checkpoints, keep=self._config.train.keep_checkpoints)
        self._snapshots = Store(directory.snapshots)
        self._watch = Stopwatch()
        self._done = 0

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: Any) -> None:
        self._watch.close()
        self._checkpoints.close()
        self._snapshots.close()

    def start(self) -> int:
        """Initialise, or resume from the newest checkpoint. Returns the number of completed rounds."""
        newest = self._checkpoints.latest()
        if newest is None:
            self._directory.cut_rows_after(-1)
            self._snapshots.drop_after(-1)
            self._state = self._experiment.initial_state()
            self._conclude({})
        else:
            self._done = newest
            self._directory.cut_rows_after(newest)
            self._snapshots.drop_after(newest)
            self._state = self._restore(newest)
            print(f"resumed   from round {newest}", flush=True)
        return self._done

    def train_one_round(self) -> dict[str, Any]:
        """One round and whatever is due after it. Returns the round's row of metrics."""
        import jax

        experiment, config = self._experiment, self._config
        with self._watch.phase("train"):
            masks, workers = experiment.round.train_locally(self._state, experiment.images, experiment.labels)
            jax.block_until_ready(workers)
        with self._watch.phase("sync"):
            self._state, loss = experiment.round.sync(self._state, masks, workers)
            loss = float(loss)
        self._done += 1
        first_step = (self._done - 1) * config.loft.local_steps
        learning_rate = float(experiment.round.step.learning_rate(first_step))
        self._stop_unless_finite("train/loss", loss, learning_rate)
        return self._conclude({"train/loss": loss, "learning_rate": learning_rate})

    def _conclude(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Evaluate, write the row, save: what is due after `self._done` rounds."""
        due, done = self._config.train, self._done
        last = done == due.rounds
        evaluates = last or done % due.eval_every == 0
        saves = last or done % due.checkpoint_every == 0
        snapshots = last or done % due.snapshot_every == 0
        if evaluates or saves or snapshots:
            with self._watch.phase("evaluation"):
                variables = {name: self._state[name] for name in ("params", "batch_stats")}
                variables = self._experiment.estimate_norms(variables, self._experiment.images)
                if evaluates:
                    metrics |= self._experiment.evaluate(variables)
        row = self._row(metrics)
        if evaluates:
            self._stop_unless_finite("test/loss", row["test/loss"], row.get("learning_rate", 0.0))
        self._directory.append(row)
        if snapshots:
            self._snapshots.save(done, {"variables": variables, "round": self._state["round"]})
        if saves:
            # A snapshot must not be missing where a later start resumes past it.
            self._snapshots.wait()
            training = {k: v for k, v in self._state.items() if k in ("batch_stats", "momentum")}
            tree = {"variables": variables, "training": training, "round": self._state["round"]}
            self._checkpoints.save(done, tree)
        if last:
            self._checkpoints.wait()
        return row

    def _row(self, metrics: dict[str, float]) -> dict[str, Any]:
        config = self._config
        seconds = self._watch.lap()
        row = {
            "round": self._done,
            "step": self._done * config.loft.local_steps,
            "epoch": config.epochs(self._done, len(self._experiment.dataset.train_labels)),
            **metrics,
        }
        if "train" in seconds:
            images = config.loft.workers * config.loft.local_steps * config.data.batch_size
            row["images_per_second"] = images / (seconds["train"] + seconds["sync"])
        return row | {f"seconds/{phase}": value for phase, value in seconds.items()}

    def _restore(self, round_number: int) -> dict[str, Any]:
        shapes = self._experiment.state_shapes()
        training = {k: v for k, v in shapes.items() if k in ("batch_stats", "momentum")}
        variables = {name: shapes[name] for name in ("params", "batch_stats")}
        like = {"variables": variables, "training": training, "round": shapes["round"]}
        tree = self._checkpoints.restore(round_number, like, self._experiment.mesh)
        return {"params": tree["variables"]["params"], **tree["training"], "round": tree["round"]}

    def _stop_unless_finite(self, name: str, value: float, learning_rate: float) -> None:
        if math.isfinite(value):
            return
        self._checkpoints.wait()
        raise RunStopped(
            f"{name} is {value} after round {self._done} (learning rate {learning_rate:.3g}); the last good checkpoint "
            f"is that of round {self._checkpoints.latest()} in {self._directory.checkpoints}. Lower "
            "optimizer.learning_rate or raise optimizer.warmup_steps, in another workdir"
        )


if __name__ == "__main__":
    run_command(main)
