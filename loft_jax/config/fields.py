"""Every setting: one field each, with its type, default, bounds and meaning. `--help` and validation read this file.

Imports neither JAX nor NumPy, so a typo is reported before either is loaded.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from loft_jax.errors import did_you_mean, format_value

MOST = 2**31 - 1  # the largest int32, the type of counters
_NO_MINUS_ZERO = AfterValidator(lambda value: value + 0.0)  # -0.0 becomes 0.0: equal configs need equal hashes
Fraction = Annotated[float, Field(ge=0, lt=1), _NO_MINUS_ZERO]
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False), _NO_MINUS_ZERO]


def join_names(value: Any) -> Any:
    """Join names, from a list or a text with commas, by commas without spaces; return any other value unchanged."""
    names = value.split(",") if isinstance(value, str) else value
    return ",".join(str(name).strip() for name in names) if isinstance(names, list | tuple) else value


class Section(BaseModel):
    """Base class of all sections: frozen, without unknown keys; a boolean or bytes are no valid number or text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None  # Pydantic sets it for validators of fields.
        annotation = str(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and "bool" not in annotation:
            raise ValueError("a boolean is not valid here")
        if isinstance(value, bytes):
            raise ValueError("binary data is not valid here")
        return value


TRACKERS = ("tensorboard", "wandb", "mlflow", "none")


class Train(Section):
    rounds: PositiveInt = Field(100, description="rounds of the run")
    eval_every: PositiveInt = Field(10, description="rounds between evaluations; the last round is always evaluated")
    checkpoint_every: PositiveInt = Field(10, description="rounds between checkpoints to resume from")
    keep_checkpoints: PositiveInt = Field(2, description="newest checkpoints kept")
    snapshot_every: PositiveInt = Field(10, description="rounds between snapshots for tickets; round 0 always has one")
    snapshot_dense_rounds: Count = Field(
        0, description="number of rounds at the start of the run that have a snapshot after each of them"
    )
    stop_when: PositiveFloat | None = Field(
        None,
        description="end the run when, after warm-up, the filter distance between two snapshots that are "
        "train.snapshot_every rounds apart has stayed below this (1: as between random rankings); null: never",
    )
    stop_snapshots: PositiveInt = Field(
        3, description="number of consecutive distances that must be below train.stop_when"
    )
    stop_groups: Literal["worst", "mean"] = Field(
        "worst",
        description="distance that is compared with train.stop_when; worst: that of the group that changed most; "
        "mean: the mean over groups",
    )
    norm_batches: PositiveInt = Field(
        32,
        description="number of training batches on which norm statistics are estimated again before an evaluation",
    )
    eval_batch_size: PositiveInt = Field(250, description="images per device and evaluation step")
    deterministic: bool = Field(False, description="deterministic GPU kernels: slower, but reproducible to the bit")
    trackers: str = Field(
        "tensorboard",
        description="where metrics are sent in addition to metrics.jsonl: tensorboard, wandb, mlflow, several of them "
        "separated by commas, or none",
    )
    profile_rounds: str = Field(
        "none",
        description="rounds that are traced by JAX's profiler, for Perfetto or TensorBoard, into RUN/profile: one, "
        "several separated by commas as in 2,3, or none; round 1 contains the compilation",
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers_joined(cls, value: Any) -> Any:
        return join_names(value)

    @field_validator("profile_rounds", mode="before")
    @classmethod
    def _rounds_joined(cls, value: Any) -> Any:
        return join_names(value)

    @field_validator("profile_rounds")
    @classmethod
    def _rounds_are_numbers(cls, value: str) -> str:
        names = [] if value == "none" else value.split(",")
        for name in names:
            if not re.fullmatch(r"[1-9][0-9]{0,9}", name):
                raise ValueError(f"{format_value(name)} is no number of a round, which count from 1; try 2, or none")
        if len(set(names)) < len(names):
            raise ValueError("names a round twice; name each once")
        return value

    @field_validator("trackers")
    @classmethod
    def _trackers_known(cls, value: str) -> str:
        names = value.split(",")
        for name in names:
            if name not in TRACKERS:
                hint = did_you_mean(name, TRACKERS, "try tensorboard")
                raise ValueError(f"{name!r} is none of {', '.join(TRACKERS)}{hint}")
        if len(set(names)) < len(names):
            raise ValueError("names a tracker twice; name each once")
        if "none" in names and len(names) > 1:
            raise ValueError("none cannot be combined with another tracker; leave out none, or the others")
        return value

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """Names of the trackers, in the order given; metrics.jsonl, which is always written, is not among them."""
        return () if self.trackers == "none" else tuple(self.trackers.split(","))

    @property
    def profiled_rounds(self) -> tuple[int, ...]:
        """Numbers of the rounds that are traced."""
        return () if self.profile_rounds == "none" else tuple(map(int, self.profile_rounds.split(",")))

    def snapshot_is_due(self, done: int) -> bool:
        """Whether a snapshot is taken after `done` rounds; always at 0 and after the last."""
        return done % self.snapshot_every == 0 or done <= self.snapshot_dense_rounds or done == self.rounds

    def evaluation_is_due(self, done: int) -> bool:
        """Whether the full CNN is evaluated after `done` rounds; always at 0 and after the last."""
        return done % self.eval_every == 0 or done == self.rounds

    def checkpoint_is_due(self, done: int) -> bool:
        """Whether a checkpoint is saved after `done` rounds; always at 0 and after the last."""
        return done % self.checkpoint_every == 0 or done == self.rounds

    def anything_is_due(self, done: int) -> bool:
        """Whether any of these is due after `done` rounds, so that the full CNN is needed."""
        return self.snapshot_is_due(done) or self.evaluation_is_due(done) or self.checkpoint_is_due(done)


class Mesh(Section):
    worker: PositiveInt | None = Field(
        None,
        description="number of devices over which workers are spread; null: the largest divisor of loft.workers for "
        "which there are enough devices",
    )
    data: PositiveInt = Field(1, description="devices that share the batch of one worker")
    cpu_devices: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="virtual devices of each process when JAX runs on the CPU"
    )


class Distributed(Section):
    """`distributed: auto` is short for `distributed: {mode: auto}`."""

    mode: Literal["off", "auto"] = Field(
        "off",
        description="off: one process; auto: the processes that SLURM, Cloud TPU, Kubernetes or Open MPI have started, "
        "which JAX detects; elsewhere set distributed.coordinator (--distributed auto is short for --distributed.mode "
        "auto)",
    )
    coordinator: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="HOST:PORT at which process 0 waits for the others"
    )
    processes: PositiveInt | None = Field(None, description="number of processes, if distributed.coordinator is set")
    process_id: Count | None = Field(
        None, description="number of this process, from 0, if distributed.coordinator is set"
    )
    start_seconds: PositiveInt = Field(300, description="seconds that processes wait for each other at the start")
    heartbeat_seconds: PositiveInt = Field(
        30, description="seconds without a heartbeat after which a process counts as dead, and the others stop"
    )

    @field_validator("coordinator")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        host, _, port = (value or "").rpartition(":")
        # Process 0 also listens at this port.
        valid = re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", host) and re.fullmatch(r"[0-9]{1,5}", port)
        if value is not None and not (valid and 0 < int(port) < 2**16):
            raise ValueError("must be HOST:PORT, with a port from 1 to 65535; try 10.0.0.1:8476")
        return value

    @property
    def is_enabled(self) -> bool:
        """Whether the run has, or may have, several processes."""
        return self.mode == "auto" or self.coordinator is not None


class GPipe(Section):
    stages: PositiveInt | None = Field(
        None,
        description="number of parts of the full CNN, each on its own device, through which plain SGD sends "
        "micro-batches (GPipe); loft.workers is then 1; null: no pipeline",
    )
    microbatches: PositiveInt = Field(
        4,
        description="number of parts of a batch that go through the stages one after another; batch norm uses the "
        "statistics of one part",
    )
    cuts: str = Field(
        "balanced",
        description="where the stages of the pipeline end: balanced (by FLOPs), paper, or the last block of each of "
        "them except the last, as in stage2/block1,stage3/block1",
    )

    @field_validator("cuts", mode="before")
    @classmethod
    def _cuts_joined(cls, value: Any) -> Any:
        return join_names(value)

    @field_validator("cuts")
    @classmethod
    def _cuts_known(cls, value: str) -> str:
        for name in [] if value in CUT_RULES else value.split(","):
            if not re.fullmatch(r"stage[0-9]+/block[0-9]+", name):
                meant = [f"stage{stage}/block{block}" for stage, block in re.findall(r"^\D+(\d+)\D+(\d+)$", name)]
                rule = "balanced, paper, or blocks as in stage2/block1,stage3/block1"
                hint = f"; did you mean {meant[0]}?" if meant else did_you_mean(name, CUT_RULES, "try balanced")
                raise ValueError(f"{name!r} is none of {rule}{hint}")
        return value

    @property
    def cut_blocks(self) -> tuple[str, ...] | None:
        """The blocks that `cuts` names; None if it is a rule."""
        return None if self.cuts in CUT_RULES else tuple(self.cuts.split(","))


CUT_RULES = ("balanced", "paper")
