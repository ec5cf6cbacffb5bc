"""Trackers that are services: Weights & Biases and MLflow. Their libraries are imported when a run starts."""

import os
import secrets
import shutil
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from loft_jax.config import Config, flatten
from loft_jax.errors import RunStopped, UserError
from loft_jax.storage.metrics import Row, scalars, with_times
from loft_jax.storage.records import CHECKSUM, Schema, UnsoundError, read_object, write_object

_Name = Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")]
_OF_WANDB = Schema(needed={"id": _Name, "round": Annotated[int, Field(ge=-1, lt=2**63)]}, optional={"open": _Name})
_OF_MLFLOW = Schema(needed={"id": _Name}, optional={})
_LATER = "some rounds are not logged yet, and are sent again with later ones"


class WandbRun:
    """A run of Weights & Biases, online, or offline in RUN/wandb, to be sent later by `wandb sync`.

    RUN/wandb.json keeps its id, the last round of the parts that were closed, and the part that is open: offline, W&B
    writes every 15 seconds, so of a process that was killed the open part is incomplete; the next start replaces it.
    """

    def __init__(self, directory: Path, config: Config):
        self._directory, self._config = directory, config
        self._run: Any = None
        self._waiting: list[tuple[Row, float]] = []
        self._failing = False

    def start(self, rows: Sequence[Row]) -> None:
        """Begin the run, or resume it, and log those of the rows that it lacks."""
        self.close(finished=False)
        begun = _read_kept(self._directory / "wandb.json", "wandb", _OF_WANDB)
        self._kept = begun or {"id": secrets.token_hex(8), "round": -1}
        self._remove_open_part()
        self._waiting, self._failing = [], False
        with _service("wandb", "run `wandb login`, or set WANDB_MODE=offline and run `wandb sync` later"):
            import wandb

            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "loft_jax"),
                name=_run_name(self._directory),
                id=self._kept["id"],
                resume="allow",
                reinit="create_new",  # apart from any other run of this process
                dir=str(self._directory),
                config=self._config.model_dump(),
            )
            # Online, W&B itself knows what it has.
            self._logged = max(self._kept["round"], self._run.step - 1)
            self._keep(open_part=Path(self._run.dir).parent.name if self._run.offline else None)
            for row, measured in with_times(rows):
                self._log(row, measured)

    def append(self, row: Row) -> None:
        """Log a row, after those that W&B has not accepted yet. W&B sends rows in the background, and retries."""
        self._waiting.append((row, time.time()))
        self._send()

    def close(self, finished: bool) -> None:
        """Wait until everything is sent, or written where W&B is offline."""
        if self._run:
            self._send()
            run, self._run = self._run, None
            with _warned("wandb", "was not closed"):
                run.finish(exit_code=0 if finished else 1)
                self._kept["round"] = self._logged
                self._keep(open_part=None)

    def _send(self) -> None:
        with _warned("wandb", _LATER, silent=self._failing):  # only the first of several errors
            while self._waiting:
                self._log(*self._waiting[0])
                del self._waiting[0]
            self._failing = False
            return
        self._failing = True

    def _log(self, row: Row, measured: float) -> None:
        # Steps must rise: after a resume, rounds that were logged before it was interrupted come again.
        if row["round"] > self._logged:
            self._run.log(scalars(row) | {"_timestamp": measured}, step=row["round"], commit=True)
            self._logged = row["round"]

    def _keep(self, open_part: str | None) -> None:
        self._kept["open"] = open_part
        write_object(self._directory / "wandb.json", self._kept)

    def _remove_open_part(self) -> None:
        part = self._directory / "wandb" / Path(self._kept.get("open") or "none").name
        if part.name.startswith("offline-run-"):
            shutil.rmtree(part, ignore_errors=True)


class MlflowRun:
    """A run of MLflow, on the server or in the files that MLFLOW_TRACKING_URI names.

    RUN/mlflow.json keeps its id; a tag of the MLflow run says which round was logged last. A row that the server
    does not accept is sent again with later ones, and training continues.
    """

    _TAG = "loft_jax.round"

    def __init__(self, directory: Path, config: Config):
        self._directory, self._config = directory, config
        self._client: Any = None
        self._waiting: list[tuple[Row, float]] = []

    def start(self, rows: Sequence[Row]) -> None:
        """Begin the run, or resume it, and log those of the rows that it lacks."""
        self.close(finished=False)
        path = self._directory / "mlflow.json"
        kept = _read_kept(path, "mlflow", _OF_MLFLOW)
        with _service(
            "mlflow", f"see that MLFLOW_TRACKING_URI is right (for a resumed run, as when {path} was written)"
        ):
            from mlflow import MlflowClient

            client = MlflowClient()
            if kept is None:
                kept = {"id": self._create(client)}
                write_object(path, kept)
            client.update_run(kept["id"], status="RUNNING")
            self._logged = int(client.get_run(kept["id"]).data.tags.get(self._TAG, -1))
        self._id, self._client, self._try_at = kept["id"], client, 0.0
        self._waiting = [(row, measured) for row, measured in with_times(rows) if row["round"] > self._logged]
        self._send()

    def append(self, row: Row) -> None:
        """Log a row, after those that the server has not accepted yet."""
        if row["round"] > self._logged:
            self._waiting.append((row, time.time()))
        if time.monotonic() >= self._try_at:
            self._send()

    def close(self, finished: bool) -> None:
        """Send what is left, and say that the run has ended."""
        if self._client:
            self._send()
            with _warned("mlflow", "was not closed"):
                self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")
            self._client = None

    def _create(self, client: Any) -> str:
        from mlflow.entities import Param

        run = client.create_run(self._experiment(client), run_name=_run_name(self._directory))
        settings = [Param(key, str(value)) for key, value in flatten(self._config).items()]
        client.log_batch(run.info.run_id, params=settings)
        return run.info.run_id

    def _experiment(self, client: Any) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        # Not by mlflow.set_experiment, which chooses one for the whole process.
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "loft_jax")
        if client.get_experiment_by_name(name) is None:
            with suppress(Exception):  # another run may be creating it
                client.create_experiment(name)
        return client.get_experiment_by_name(name).experiment_id

    def _send(self) -> None:
        from mlflow.entities import Metric, RunTag

        begun = time.monotonic()
        with _warned("mlflow", _LATER):
            while self._waiting:
                row, measured = self._waiting[0]
                metrics = [Metric(k, v, int(measured * 1000), row["round"]) for k, v in scalars(row).items()]
                self._client.log_batch(self._id, metrics, tags=[RunTag(self._TAG, str(row["round"]))])
                self._logged = row["round"]
                del self._waiting[0]
            return
        # At most a tenth of the run's time is spent waiting for a server that does not answer.
        self._try_at = time.monotonic() + 10 * (time.monotonic() - begun)


def _run_name(directory: Path) -> str:
    return str(directory)[-128:]  # longer names are refused


def _read_kept(path: Path, name: str, schema: Schema) -> dict[str, Any] | None:
    """Read what a tracker has kept in a file of the run directory; None where there is none. Raises UserError."""
    try:
        kept = read_object(path, schema)
    except UnsoundError as error:
        advice = f"so it does not name the {name} run to resume; delete the file to begin another one"
        raise UserError(f"{error}, {advice}") from None
    return kept and {key: value for key, value in kept.items() if key != CHECKSUM}


@contextmanager
def _service(name: str, advice: str) -> Generator[None]:
    """Turn any error of a service that starts into a UserError."""
    try:
        yield
    except RunStopped:
        raise
    except Exception as error:  # These libraries raise errors of any type.
        message = f"train.trackers={name}: {name} did not start ({error_reason(error)}); {advice}, or leave {name} out"
        raise UserError(message) from error


@contextmanager
def _warned(name: str, what: str, silent: bool = False) -> Generator[None]:
    """Turn any later error of a service into a warning, or hide it, because training matters more than its display."""
    try:
        yield
    except Exception as error:
        if not silent:
            print(f"warning: train.trackers={name}: {what} ({error_reason(error)})", file=sys.stderr, flush=True)


def error_reason(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason is given'}"
