"""Every setting: one field each, with its type, default, bounds and meaning. `--help` and validation read this file.

Imports neither JAX nor NumPy, so a typo is reported before either is loaded.
"""

import difflib
import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, and a boolean is not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = str(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and "bool" not in annotation:
            raise ValueError("a boolean is not valid here")
        return value


class Model(Section):
    name: Literal["preresnet18", "preresnet20", "preresnet34", "resnet18", "resnet34"] = Field(
        "preresnet20", description="architecture"
    )
    width: PositiveInt | None = Field(
        None, description="channels of the first stage; null: the published width (64; preresnet20: 16)"
    )
    stem: Literal["cifar", "imagenet"] = Field("cifar", description="3x3, or 7x7 stride 2 with max-pooling")


class Data(Section):
    name: str = Field("digits", min_length=1, description="digits, or any TFDS image-classification data set")
    data_dir: str | None = Field(None, description="TFDS data directory; null: TFDS's default")
    batch_size: PositiveInt = Field(32, description="images per worker and local step")
    split: Literal["shared", "disjoint"] = Field(
        "shared", description="every worker passes over the whole training set, or each over its own part of an epoch"
    )
    augment: bool = Field(True, description="random crop, and flip (digits: crop only) of training images")


class Loft(Section):
    workers: PositiveInt = Field(
        4, description="sub-CNNs trained side by side; 1 is plain SGD, and the default where gpipe.stages is set"
    )
    local_steps: PositiveInt = Field(16, description="SGD steps of a worker between two syncs")
    sync: Literal["psum", "exchange"] = Field(
        "psum",
        description="how owned slices travel: summed into every device's full CNN, or straight from each owner to the "
        "next (fewer bytes, and no device holds the full CNN)",
    )
    partition: Literal["paper", "all", "none"] = Field(
        "paper", description="groups to split: those the model declares, every group, or none (local SGD)"
    )
    momentum: Literal["carry", "reset"] = Field(
        "carry", description="at a sync, momentum travels with its filters, or starts at zero"
    )
    rescale: bool = Field(
        False,
        description="multiply a split block's residual branch by the number of workers in local training "
        "(in resnet18 and resnet34 the norm behind it takes most of that back)",
    )


class Optimizer(Section):
    learning_rate: PositiveFloat = Field(0.1, description="peak learning rate")
    momentum: Fraction = Field(0.9, description="SGD momentum")
    weight_decay: NonNegativeFloat = Field(5e-4, description="L2 penalty's gradient factor, on kernels only")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine",
        description="after warm-up, over the local steps of the whole run: to 0, by 0.1 at 1/2 and 3/4, or flat",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="local steps of linear warm-up")
    label_smoothing: Fraction = Field(0.0, description="probability mass spread over all classes")


class Train(Section):
    rounds: PositiveInt = Field(100, description="rounds of the run")
    eval_every: PositiveInt = Field(10, description="rounds between evaluations; the last round always is evaluated")
    checkpoint_every: PositiveInt = Field(10, description="rounds between checkpoints to resume from")
    keep_checkpoints: PositiveInt = Field(2, description="newest checkpoints kept")
    snapshot_every: PositiveInt = Field(10, description="rounds between snapshots for tickets; round 0 always is one")
    snapshot_dense_rounds: Annotated[int, Field(ge=0)] = Field(
        0, description="rounds at the start after each of which a snapshot is taken too"
    )
    stop_when: PositiveFloat | None = Field(
        None,
        description="end the run when the filter distance (1 is chance) over train.snapshot_every rounds, once warm-up "
        "is over, has stayed below this; null: never",
    )
    stop_snapshots: PositiveInt = Field(3, description="consecutive distances for which train.stop_when must hold")
    stop_groups: Literal["worst", "mean"] = Field(
        "worst", description="what train.stop_when looks at: the filter group that moved most, or the mean over groups"
    )
    norm_batches: PositiveInt = Field(
        32,
        description="training batches of data.batch_size on which norm statistics are re-estimated before evaluation",
    )
    eval_batch_size: PositiveInt = Field(250, description="images per device and evaluation step")
    deterministic: bool = Field(False, description="deterministic GPU kernels: slower, reproducible to the bit")

    def snapshot_is_due(self, done: int) -> bool:
        """Whether a snapshot is taken after so many rounds: at 0 and at the last always."""
        return done % self.snapshot_every == 0 or done <= self.snapshot_dense_rounds or done == self.rounds

    def evaluation_is_due(self, done: int) -> bool:
        """Whether the full CNN is evaluated after so many rounds: at 0 and at the last always."""
        return done % self.eval_every == 0 or done == self.rounds

    def checkpoint_is_due(self, done: int) -> bool:
        """Whether a checkpoint is saved after so many rounds: at 0 and at the last always."""
        return done % self.checkpoint_every == 0 or done == self.rounds

    def anything_is_due(self, done: int) -> bool:
        """Whether the full CNN is needed after so many rounds, for any of these."""
        return self.snapshot_is_due(done) or self.evaluation_is_due(done) or self.checkpoint_is_due(done)


class Mesh(Section):
    worker: PositiveInt | None = Field(
        None, description="devices over which workers are spread; null: the largest divisor of loft.workers available"
    )
    data: PositiveInt = Field(1, description="devices that share the batch of one worker")
    cpu_devices: PositiveInt = Field(1, description="virtual devices when JAX runs on the CPU")


class GPipe(Section):
    stages: PositiveInt | None = Field(
        None,
        description="parts of the full CNN, each on a device of its own, through which plain SGD sends micro-batches "
        "(GPipe); loft.workers is then 1; null: no pipeline",
    )
    microbatches: PositiveInt = Field(
        4, description="parts of a batch that follow each other through the stages; batch norm sees one at a time"
    )
    cuts: str = Field(
        "balanced",
        description="where the stages end: balanced (by FLOPs), paper, or the last block of each stage but the last, "
        "as in stage2/block1,stage3/block1",
    )

    @field_validator("cuts", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        names = value.split(",") if isinstance(value, str) else value
        return ",".join(str(name).strip() for name in names) if isinstance(names, list | tuple) else value

    @field_validator("cuts")
    @classmethod
    def _named(cls, value: str) -> str:
        for name in [] if value in CUT_RULES else value.split(","):
            if not re.fullmatch(r"stage\d+/block\d+", name):
                meant = [f"stage{stage}/block{block}" for stage, block in re.findall(r"^\D+(\d+)\D+(\d+)$", name)]
                close = meant or difflib.get_close_matches(name, CUT_RULES, n=1)
                hint = f"did you mean {close[0]}?" if close else "try balanced"
                rule = "balanced, paper, or blocks as in stage2/block1,stage3/block1"
                raise ValueError(f"{name!r} is none of {rule}; {hint}")
        return value

    @property
    def cut_blocks(self) -> tuple[str, ...] | None:
        """The blocks that `cuts` names; None where it is a rule."""
        return None if self.cuts in CUT_RULES else tuple(self.cuts.split(","))


CUT_RULES = ("balanced", "paper")


class Config(Section):
    """A run's settings."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of everything random")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of the computation; variables are float32 in either "
        "(accelerators may multiply float32 at lower precision: jax_default_matmul_precision)",
    )
    model: Model = Model()
    data: Data = Data()
    loft: Loft = Loft()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    mesh: Mesh = Mesh()
    gpipe: GPipe = GPipe()

    @model_validator(mode="before")
    @classmethod
    def _a_pipeline_has_one_worker(cls, settings: Any) -> Any:
        """Asking for GPipe is not asking for the default number of workers too."""
        sections = [settings.get(name) or {} for name in ("gpipe", "loft")] if isinstance(settings, dict) else [None]
        if not all(isinstance(section, dict) for section in sections) or sections[0].get("stages") is None:
            return settings
        return {**settings, "loft": {"workers": 1, **sections[1]}}

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.data.batch_size % self.mesh.data:
            raise ValueError(
                f"data.batch_size={self.data.batch_size}: must be a multiple of mesh.data={self.mesh.data}; "
                f"try {nearest_multiple(self.data.batch_size, self.mesh.data)}"
            )
        if self.gpipe.stages is not None:
            self._check_pipeline(self.gpipe.stages)
        if self.mesh.worker is not None and self.loft.workers % self.mesh.worker:
            fitting = largest_divisor(self.loft.workers, self.mesh.worker)
            raise ValueError(
                f"mesh.worker={self.mesh.worker}: must divide loft.workers={self.loft.workers}; try {fitting}"
            )
        if self.optimizer.warmup_steps >= self.total_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps}: must be below the run's {self.total_steps} "
                f"local steps (train.rounds * loft.local_steps); try {self.total_steps // 10}"
            )
        judged = range(0, self.train.rounds + 1, self.train.snapshot_every)
        distances = sum(map(self.stopping_is_judged, judged)) - 1
        if self.train.stop_when is not None and self.train.stop_snapshots > distances:
            raise ValueError(
                f"train.stop_snapshots={self.train.stop_snapshots}: train.stop_when could never hold, for from warm-up "
                f"to the end there are only {max(0, distances)} distances over train.snapshot_every="
                f"{self.train.snapshot_every} rounds; lower either, or raise train.rounds"
            )
        return self

    def _check_pipeline(self, stages: int) -> None:
        batch_size, parts, cuts = self.data.batch_size, self.gpipe.microbatches, self.gpipe.cut_blocks
        if self.loft.workers != 1:
            raise ValueError(
                f"gpipe.stages={stages}: is GPipe, which trains the full CNN, and loft.workers={self.loft.workers} is "
                "LoFT; use loft.workers=1, or leave gpipe.stages out"
            )
        if batch_size % parts:
            divisors = [d for d in range(1, batch_size + 1) if batch_size % d == 0]
            nearest = min(divisors, key=lambda d: (abs(d - parts), d))
            raise ValueError(f"gpipe.microbatches={parts}: must divide data.batch_size={batch_size}; try {nearest}")
        if cuts is not None and len(cuts) != stages - 1:
            raise ValueError(
                f"gpipe.cuts={self.gpipe.cuts}: must name {stages - 1} blocks for gpipe.stages={stages}, not "
                f"{len(cuts)}; try gpipe.stages={len(cuts) + 1}, or gpipe.cuts=balanced"
            )
        for key, value in (("mesh.data", self.mesh.data), ("mesh.worker", self.mesh.worker)):
            if value not in (1, None):
                raise ValueError(f"{key}={value}: a stage of GPipe is one device; leave {key} out")

    def stopping_is_judged(self, done: int) -> bool:
        """Whether `train.stop_when` looks at the snapshot after so many rounds: those of the cadence, after warm-up."""
        return done % self.train.snapshot_every == 0 and done * self.loft.local_steps >= self.optimizer.warmup_steps

    @property
    def total_steps(self) -> int:
        """Local steps of one worker over the whole run."""
        return self.train.rounds * self.loft.local_steps

    @property
    def images_per_round(self) -> int:
        """Images that all workers together train on in one round."""
        return self.loft.workers * self.loft.local_steps * self.data.batch_size

    def hash(self) -> str:
        """12 hex digits of the settings that differ from their defaults and can change the result.

        A new field leaves the hashes of old configs as they are, as long as its default changes nothing.
        """
        defaults, settings = flatten(Config()), flatten(self)
        named = {k: v for k, v in settings.items() if k not in self.resumable() and v != defaults[k]}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]

    def resumable(self) -> frozenset[str]:
        """Dotted keys that may differ between a run's first start and its resume: they leave the result as it is."""
        keys = RESUMABLE if self.train.stop_when is None else RESUMABLE - SNAPSHOT_CADENCE
        return keys | {"gpipe.microbatches"} if self.gpipe.stages is None else keys

    def epochs(self, rounds: int, examples: int) -> float:
        """Passes over a training set of `examples` images made by `rounds` rounds, as paper.md counts them."""
        readers = self.loft.workers if self.data.split == "disjoint" else 1
        return rounds * self.loft.local_steps * self.data.batch_size * readers / examples


# Where `train.stop_when` looks at the snapshots, when they are taken decides where the run ends.
SNAPSHOT_CADENCE = frozenset({"train.snapshot_every", "train.snapshot_dense_rounds"})
RESUMABLE = SNAPSHOT_CADENCE | frozenset(
    {
        "data.data_dir",
        "train.eval_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.eval_batch_size",
        "mesh.worker",
        "mesh.data",
        "mesh.cpu_devices",
        "gpipe.cuts",
    }
)


def flatten(config: Section, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every field."""
    flat = {}
    for key in type(config).model_fields:
        value = getattr(config, key)
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Section) else {prefix + key: value}
    return flat


def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`."""
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


def nearest_multiple(value: int, factor: int) -> int:
    """The positive multiple of `factor` nearest to `value`."""
    return max(1, round(value / factor)) * factor
