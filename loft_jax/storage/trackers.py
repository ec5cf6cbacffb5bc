"""What receives the metrics of a run beside metrics.jsonl: TensorBoard events, Weights & Biases, MLflow.

Imports neither JAX nor NumPy, nor any tracker's library before it is used.
"""

import os
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from loft_jax.config import Config, Train
from loft_jax.errors import UserError
from loft_jax.files import ASIDE, stop_on_write_error
from loft_jax.storage.metrics import Row, scalars, with_times
from loft_jax.storage.services import MlflowRun, WandbRun

EVENTS = "events.out.tfevents.*"

# What each tracker needs: a library, and how it is installed.
_LIBRARIES = {
    "tensorboard": ("tensorboardX", "pip install tensorboardX"),
    "wandb": ("wandb", "pip install 'loft_jax[wandb]'"),
    "mlflow": ("mlflow", "pip install 'loft_jax[mlflow]'"),
}


class Tracker(Protocol):
    """Receives every row of metrics of a run: `round` is the step, and every other number a scalar of that step."""

    def start(self, rows: Sequence[Row]) -> None:
        """Begin, or begin again, where these are the rows so far; each round then stands there once.

        Raises:
          UserError: a service cannot be used.
          RunStopped: a file cannot be written.
        """

    def append(self, row: Row) -> None:
        """Add the row of a round that has just ended. Raises RunStopped if a file cannot be written."""

    def close(self, finished: bool) -> None:
        """Write what is left; `finished` says whether the run has reached its end."""


def create_trackers(config: Config, directory: Path) -> list[Tracker]:
    """The trackers that `train.trackers` names, for a run in this directory; nothing is written yet."""
    kinds = {"tensorboard": TensorBoardEvents, "wandb": WandbRun, "mlflow": MlflowRun}
    return [kinds[name](directory, config) for name in config.train.tracker_names]


def check_installed(train: Train) -> None:
    """Raise UserError if the library of a tracker is not installed; imports none of them."""
    for name in train.tracker_names:
        library, command = _LIBRARIES[name]
        spec = find_spec(library)
        # A directory of that name that is no package, as W&B makes one, has no origin.
        if spec is None or spec.origin is None:
            raise UserError(
                f"train.trackers={train.trackers}: {name} needs the library {library}, which is not installed; "
                f"{command}, or leave {name} out (none: metrics.jsonl alone)"
            )


class TensorBoardEvents:
    """A file of events in the run directory, written again from all rows at every start."""

    def __init__(self, directory: Path, config: Config):
        # RecordWriter takes what stands before a colon for a protocol.
        self._directory = directory.absolute()
        self._writer: Any = None

    def start(self, rows: Sequence[Row]) -> None:
        """Write a new file of these rows' events, in place of those that are there."""
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event

        self.close(finished=False)
        before = list(self._directory.glob(EVENTS))
        # TensorBoard continues with the file whose name comes last.
        self._path = self._directory / EVENTS.replace("*", f"{time.time_ns() // 1000:017d}.loft_jax")
        aside = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}{ASIDE}")
        with stop_on_write_error(self._path), self._closed_on_error(unfinished=aside):
            self._writer = RecordWriter(str(aside))
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
            for row, measured in with_times(rows):
                self._write(_event(row, measured))
            self._writer.flush()
            os.replace(aside, self._path)
            for other in before:
                other.unlink(missing_ok=True)

    def append(self, row: Row) -> None:
        """Add a row's event; it is on disk when this returns."""
        with stop_on_write_error(self._path), self._closed_on_error():
            self._write(_event(row, time.time()))
            self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    @contextmanager
    def _closed_on_error(self, unfinished: Path | None = None) -> Generator[None]:
        """Close the file after an error: otherwise Python would report the error again when it ends."""
        try:
            yield
        except OSError:
            writer, self._writer = self._writer, None
            with suppress(OSError):
                if writer:
                    writer.close()
            if unfinished:
                unfinished.unlink(missing_ok=True)
            raise


def _event(row: Row, measured: float) -> Any:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=key, simple_value=value) for key, value in scalars(row).items()]
    return Event(wall_time=measured, step=row["round"], summary=Summary(value=values))
