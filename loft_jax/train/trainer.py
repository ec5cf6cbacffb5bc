"""A run in progress: its state, its rounds, and what is due after each round."""

import math
import sys
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from typing import Any

import jax
import jax.numpy as jnp

from loft_jax.data import data_identity
from loft_jax.devices import reduce_over_processes
from loft_jax.errors import Preempted, RunStopped, UserError
from loft_jax.loft import State, put_state
from loft_jax.signals import Preemption
from loft_jax.storage import RunDirectory, Store, newest_sound, read_state, saved_rounds
from loft_jax.train.experiment import Experiment
from loft_jax.train.overview import describe_learning_rates, summarise
from loft_jax.train.profiling import trace_round
from loft_jax.train.progress import TrainingProgress
from loft_jax.train.recovery import rows_of_a_finished_run, warn_of_lost_rows
from loft_jax.train.stopping import TicketWatch
from loft_jax.train.stopwatch import Stopwatch

Tree = dict[str, Any]
Row = dict[str, Any]


def train_to_the_end(
    experiment: Experiment,
    directory: RunDirectory,
    start_from: Callable[[], State] | None = None,
    *,
    snapshots: Collection[int] | None = None,
    preemption: Preemption | None = None,
    first_round: int = 0,
) -> dict[str, Any]:
    """Train in an opened directory, from its newest checkpoint if it has one, with progress.

    Args:
      start_from: makes the state before the first round; None for the experiment's initialisation.
      snapshots: rounds that have a snapshot; None for those that train.snapshot_every and others name.
      preemption: asked after every round whether to stop.
      first_round: completed rounds of the state that `start_from` makes.

    Returns:
      The summary; {} in a process that does not write the directory.

    Raises:
      UserError: every checkpoint is damaged, or the directory's run was trained on other data.
      RunStopped: the loss is no longer finite, or a file cannot be written.
      Preempted: the run was asked to stop, and has saved the round it was in.
    """
    directory.agree_on_data(data_identity(experiment.dataset))
    rounds = experiment.config.train.rounds
    rows = rows_of_a_finished_run(directory, rounds) if directory.writes else None
    if reduce_over_processes(rows is not None):
        warn_of_lost_rows(directory, rounds, first_round)
        return summarise(experiment, rows, first_round) if rows else {}
    with Trainer(experiment, directory, snapshots=snapshots, preemption=preemption, first_round=first_round) as trainer:
        done = trainer.start(start_from)
        print(f"workdir   {directory.path}" + (f", {trainer.origin} round {done}" if done else ""), flush=True)
        with TrainingProgress(rounds, done) as progress, preemption.saving() if preemption else nullcontext():
            while not (trainer.finished or trainer.stop_requested):
                progress.update(trainer.train_one_round())
        if not trainer.finished:
            assert preemption is not None, "nobody asked"
            raise preemption.stopped(f" after round {trainer.done} of {rounds}, which is saved")
        if not directory.writes:
            return {}
        summary = summarise(experiment, directory.rows(), first_round)
        if trainer.stop_reason:
            summary["stopped"] = trainer.stop_reason
    return summary


class Trainer:
    """Trains an experiment in an opened run directory, round by round. Use as a context manager.

    Attributes:
      done: completed rounds, those that a given start counts as completed included.
      origin: how it came to the rounds that were done at its start: "resumed after" them, or "begins after" them.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        *,
        snapshots: Collection[int] | None = None,
        preemption: Preemption | None = None,
        first_round: int = 0,
    ):
        self._experiment, self._config, self._directory = experiment, experiment.config, directory
        self._snapshot_rounds, self._preemption = snapshots, preemption
        self._ticket_watch: TicketWatch | None = None
        if self._config.train.stop_when is not None:
            self._ticket_watch = TicketWatch(self._config.train, experiment.method.groups)
        self._first_round = first_round
        self._watch = Stopwatch()
        self._stores: list[Store] = []
        self.done, self.finished, self.stop_requested = 0, False, False
        self.origin = "resumed after"

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._watch.close()
        self._experiment.images.close()
        if kind and not issubclass(kind, Preempted) and jax.process_count() > 1:
            return  # Closing waits for the other processes, which may have ended.
        # Report the error that stopped the run, not one that closing raises because of it.
        with suppress(Exception) if kind else nullcontext():
            for store in self._stores:
                store.close()

    def start(self, start_from: Callable[[], State] | None = None) -> int:
        """Initialise, or resume from the newest sound checkpoint. Returns the number of completed rounds."""
        directory = self._directory
        found = newest_sound(directory.checkpoints)
        self.done = found[0] if found else 0
        lost = max((row["round"] for row in directory.rows()), default=0)
        if found is None and lost and directory.writes:
            print(
                f"warning: {directory.checkpoints}: holds no checkpoint to resume from; the run starts again from the "
                f"beginning, and what is left of its {lost} rounds is deleted",
                file=sys.stderr,
                flush=True,
            )
        if found and directory.writes:
            warn_of_lost_rows(directory, self.done, self._first_round)
        directory.forget_after(self.done if found else -1)
        # All wait for the first process, which has just deleted files that Orbax would find.
        reduce_over_processes(self.done)
        self._checkpoints = Store(directory.checkpoints, keep=self._config.train.keep_checkpoints)
        takes_snapshots = self._snapshot_rounds is None or len(self._snapshot_rounds) > 0
        self._snapshots = Store(directory.snapshots) if takes_snapshots else None
        self._stores = [store for store in (self._checkpoints, self._snapshots) if store]
        if found is None:
            state = (start_from or self._experiment.initial_state)()
            self.done, self.origin = int(state.round), "begins after"
            self._state = self._experiment.method.place(state)
            self._conclude({})
        else:
            self._state = self._place(found[1])
            self._resume_ticket_watch()
            self.finished = self._is_over()
            self._restore_row()
        self.stop_requested = self._is_stop_requested()
        if self.stop_requested:
            self._checkpoints.wait()
        return self.done

    def _resume_ticket_watch(self) -> None:
        watch, directory = self._ticket_watch, self._directory
        judged = [r for r in range(self.done + 1) if self._config.stop_check_is_due(r)]
        if watch is None or not judged:
            return
        rows = directory.rows()
        # What the rows have lost is measured again, from the snapshots.
        again = watch.lacking(rows, judged[1:])
        try:
            for earlier in judged[-1 - self._config.train.stop_snapshots :] if again else ():
                watch.observe(read_state(directory.snapshots, earlier)["variables"])
            if not again:
                watch.resume(read_state(directory.snapshots, judged[-1])["variables"], rows)
        except UserError as error:
            raise UserError(
                f"{error}; train.stop_when needs it to continue. Delete the checkpoints of round {judged[-1]} and "
                "later to resume from an earlier round"
            ) from None

    def _restore_row(self) -> None:
        """Evaluate the state that the run resumes from, if the row of its round is lost or lacks that."""
        row = next((row for row in self._directory.rows() if row["round"] == self.done), {})
        lost = not row or (self.finished and "test/accuracy" not in row)
        if not reduce_over_processes(lost and self._directory.writes):
            return
        variables = self._full().variables
        with self._watch.phase("evaluation"):
            variables = self._experiment.estimate_norms(variables)
            metrics = self._experiment.evaluate(variables)
            if self._experiment.validate:
                metrics |= self._experiment.validate(variables)
        self._directory.replace_row({**self._row(metrics), **row, **metrics})

    def _is_over(self) -> bool:
        """Whether no round is left: the last is done, or `train.stop_when` ends the run. All processes agree."""
        if self._ticket_watch is None:
            return self.done == self._config.train.rounds
        return bool(reduce_over_processes(self.done == self._config.train.rounds or self.stop_reason is not None))

    def _is_stop_requested(self) -> bool:
        """Whether any process was asked to stop. All processes agree."""
        return bool(reduce_over_processes(self._preemption is not None and self._preemption.requested))

    @property
    def stop_reason(self) -> str | None:
        """Why `train.stop_when` ends the run; None if it does not."""
        return self._ticket_watch.reason if self._ticket_watch else None

    def train_one_round(self) -> Row:
        """Do one round and everything that is due after it; trace it if `train.profile_rounds` names it.

        Returns:
          The round's row of metrics.

        Raises:
          RunStopped: the loss is not finite; nothing of the round is saved.
        """
        number = self.done + 1
        if number in self._config.train.profiled_rounds and self._directory.writes:
            with trace_round(self._directory.profile, number):
                return self._train_one_round()
        return self._train_one_round()

    def _train_one_round(self) -> Row:
        experiment, config = self._experiment, self._config
        with self._watch.phase("train"):
            masks, workers = experiment.method.train_locally(self._state)
            jax.block_until_ready(workers)
        with self._watch.phase("sync"):
            self._state, loss = experiment.method.finish(self._state, masks, workers)
            loss = float(loss)
        self.done += 1
        self.stop_requested = self._is_stop_requested()
        self._stop_unless_finite("train/loss", loss)
        learning_rate = float(experiment.method.step.learning_rate(self.done * config.loft.local_steps - 1))
        moved = experiment.bill.wire_in(self.done - 1)
        return self._conclude({"train/loss": loss, "learning_rate": learning_rate, "bytes_on_the_wire": moved})

    def _conclude(self, metrics: Row) -> Row:
        """Do what is due after `self.done` rounds: evaluate, write the row, save."""
        due = self._config.train
        snapshots = self._snapshots if self._snapshot_is_due() else None
        full = variables = None
        if self._ticket_watch and self._config.stop_check_is_due(self.done):
            full = self._full()
            metrics |= self._ticket_watch.observe(full.variables)
        self.finished = self._is_over()
        evaluates = self.finished or due.evaluation_is_due(self.done)
        saves = self.finished or self.stop_requested or due.checkpoint_is_due(self.done)
        if evaluates or saves or snapshots:
            full = full or self._full()
            with self._watch.phase("evaluation"):
                variables = self._experiment.estimate_norms(full.variables)
                if evaluates:
                    metrics |= self._experiment.evaluate(variables)
                    if self._experiment.validate:
                        metrics |= self._experiment.validate(variables)
                    self._stop_unless_finite("test/loss", metrics["test/loss"])
            # The loss is from before the last update of the round, and a saved round is not always evaluated.
            if not _all_finite((variables, full)):
                self._stop_unless_finite("a variable", math.nan)
        row = self._row(metrics)
        self._directory.append(row)
        if full is not None and variables is not None:
            self._save(full, variables, snapshots, checkpoint=saves)
        if self.finished or self.stop_requested:
            self._checkpoints.wait()
        return row

    def _snapshot_is_due(self) -> bool:
        if self._snapshot_rounds is None:
            return self._config.train.snapshot_is_due(self.done)
        return self.done in self._snapshot_rounds

    def _save(self, full: State, variables: Tree, snapshots: Store | None, *, checkpoint: bool) -> None:
        """Save what is due of a state that is ready to evaluate: a snapshot if its store is given, and a checkpoint."""
        if snapshots:
            snapshots.save(self.done, {"variables": variables, "round": full.round})
        if checkpoint:
            # Write snapshots first: a run that resumes from this checkpoint needs all snapshots before it.
            if self._snapshots:
                self._snapshots.wait()
            self._checkpoints.save(self.done, full.checkpoint(variables))

    def _full(self) -> State:
        with self._watch.phase("evaluation"):
            return self._experiment.method.full(self._state)

    def _row(self, metrics: Row) -> Row:
        config, seconds = self._config, self._watch.lap()
        row = {
            "round": self.done,
            "step": self.done * config.loft.local_steps,
            "epoch": config.epochs(self.done, self._experiment.dataset.examples),
            **metrics,
        }
        if "train" in seconds:
            row["images_per_second"] = config.images_per_round / (seconds["train"] + seconds["sync"])
            row |= self._experiment.share_of_peak(row["images_per_second"])
        return row | {f"seconds/{phase}": value for phase, value in seconds.items()}

    def _place(self, saved: Tree) -> Any:
        """Make the state between rounds from a checkpoint. Raises UserError if that is another model's."""
        shapes = self._experiment.state_shapes
        like = shapes.checkpoint(shapes.variables)
        found, expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (saved, like))
        if found != expected:
            raise UserError(f"{self._directory.checkpoints / str(self.done)}: holds the state of another model")
        full = put_state(State.from_checkpoint(saved), self._config, self._experiment.mesh)
        return self._experiment.method.place(full)

    def _stop_unless_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        self._checkpoints.wait()
        good = saved_rounds(self._directory.checkpoints)
        last = f"the last good checkpoint is that of round {max(good, default=None)} in {self._directory.checkpoints}"
        step, steps = self._experiment.method.step, self._config.loft.local_steps
        rates = f" ({describe_learning_rates(step.learning_rate, self.done * steps, steps)})" if self.done else ""
        raise RunStopped(
            f"{name} is {value} after round {self.done}{rates}; {last if good else 'nothing is saved'}. Lower "
            "optimizer.learning_rate or raise optimizer.warmup_steps, and start again in another directory, or "
            "delete this one first"
        )


@jax.jit
def _all_finite(tree: Tree) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
