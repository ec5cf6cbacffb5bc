"""All settings of a run: the rules between them, which of them identify a run, and values that follow from them.

Imports neither JAX nor NumPy, so a typo is reported before either is loaded.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from loft_jax.config.data import Data
from loft_jax.config.fields import MOST, Distributed, GPipe, Mesh, Section, Train
from loft_jax.config.loft import Loft
from loft_jax.config.model import Model
from loft_jax.config.optimizer import Optimizer


class Config(Section):
    """A run's settings."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seed of everything random")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of the computation; variables are always float32 "
        "(accelerators may multiply float32 at lower precision: see matmul_precision)",
    )
    matmul_precision: Literal["default", "high", "highest"] = Field(
        "default",
        description="how exactly accelerators multiply float32: as JAX does by default (TF32 on GPUs, bfloat16 on "
        "TPUs), high (in three products of bfloat16 on TPUs), or highest (in full, several times slower)",
    )
    model: Model = Model()
    data: Data = Data()
    loft: Loft = Loft()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    mesh: Mesh = Mesh()
    gpipe: GPipe = GPipe()
    distributed: Distributed = Distributed()

    @model_validator(mode="before")
    @classmethod
    def _a_pipeline_has_one_worker(cls, settings: Any) -> Any:
        """Set loft.workers to 1 if gpipe.stages is given and loft.workers is not."""
        sections = [settings.get(name) or {} for name in ("gpipe", "loft")] if isinstance(settings, dict) else [None]
        if not all(isinstance(section, dict) for section in sections) or sections[0].get("stages") is None:
            return settings
        return {**settings, "loft": {"workers": 1, **sections[1]}}

    @model_validator(mode="before")
    @classmethod
    def _distributed_may_be_its_mode(cls, settings: Any) -> Any:
        return expand_short_form(settings) if isinstance(settings, dict) else settings

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if self.data.batch_size % self.mesh.data:
            raise ValueError(
                f"data.batch_size={self.data.batch_size}: must be a multiple of mesh.data={self.mesh.data}; "
                f"try {nearest_multiple(self.data.batch_size, self.mesh.data)}"
            )
        self.model.check_options()
        if self.model.own and self.model.width is not None:
            raise ValueError(
                f"model.width={self.model.width}: a network of your own has its width in model.options; leave it out"
            )
        self.optimizer.check(self.total_steps)
        self.loft.check(self.train.rounds, self.gpipe.stages)
        if self.data.name == "digits":
            self._check_digits()
        if self.data.name in _KEPT_ON_DEVICE:
            self._check_own_data(_KEPT_ON_DEVICE[self.data.name])
        if self.gpipe.stages is not None:
            self._check_pipeline(self.gpipe.stages)
        self._check_processes()
        if self.mesh.worker is not None and self.loft.workers % self.mesh.worker:
            fitting = largest_divisor(self.loft.workers, self.mesh.worker)
            raise ValueError(
                f"mesh.worker={self.mesh.worker}: must divide loft.workers={self.loft.workers}; try {fitting}"
            )
        if self.total_steps * self.data.batch_size > MOST:
            most = MOST // (self.loft.local_steps * self.data.batch_size)
            raise ValueError(
                f"train.rounds={self.train.rounds}: a worker would read {self.total_steps * self.data.batch_size} "
                f"images (loft.local_steps={self.loft.local_steps}, data.batch_size={self.data.batch_size}), but at "
                f"most {MOST} can be counted; {f'try {most}' if most else 'lower one of them'}"
            )
        for number in self.train.profiled_rounds:
            if number > self.train.rounds:
                raise ValueError(
                    f"train.profile_rounds={self.train.profile_rounds}: the run has no round {number}, because "
                    f"train.rounds={self.train.rounds}; try {min(2, self.train.rounds)}"
                )
        every = self.train.snapshot_every
        first_checked = -(-self.optimizer.warmup_steps // (every * self.loft.local_steps))
        distances = self.train.rounds // every - first_checked
        if self.train.stop_when is not None and self.train.stop_snapshots > distances:
            raise ValueError(
                f"train.stop_snapshots={self.train.stop_snapshots}: train.stop_when could never hold, because from "
                f"warm-up to the end there are only {max(0, distances)} distances between snapshots that are "
                f"train.snapshot_every={self.train.snapshot_every} rounds apart; lower either, or raise train.rounds"
            )
        return self

    def _check_digits(self) -> None:
        if self.data.data_dir is not None:
            raise ValueError(
                f"data.data_dir={self.data.data_dir}: digits ships with scikit-learn and is read from no directory; "
                "leave it out, or name another data set with data.name"
            )
        if self.data.loading == "stream":
            raise ValueError("data.loading=stream: digits ships with scikit-learn, not as files to stream; use auto")

    def _check_own_data(self, source: str) -> None:
        name = self.data.name
        if self.data.data_dir is None:
            raise ValueError(f"data.data_dir=null: data.name={name} is read from {source}; give its path")
        if self.data.loading == "stream":
            raise ValueError(f"data.loading=stream: {name} is kept on the device; use auto, or a TFDS data set")

    def _check_pipeline(self, stages: int) -> None:
        batch_size, parts, cuts = self.data.batch_size, self.gpipe.microbatches, self.gpipe.cut_blocks
        if self.loft.workers != 1:
            raise ValueError(
                f"gpipe.stages={stages}: is GPipe, which trains the full CNN, and loft.workers={self.loft.workers} is "
                "LoFT; use loft.workers=1, or leave gpipe.stages out"
            )
        if batch_size % parts:
            nearest = min(divisors(batch_size), key=lambda d: (abs(d - parts), d))
            raise ValueError(f"gpipe.microbatches={parts}: must divide data.batch_size={batch_size}; try {nearest}")
        if cuts is not None and len(cuts) != stages - 1:
            raise ValueError(
                f"gpipe.cuts={self.gpipe.cuts}: must name {stages - 1} blocks for gpipe.stages={stages}, not "
                f"{len(cuts)}; try gpipe.stages={len(cuts) + 1}, or gpipe.cuts=balanced"
            )
        if (self.distributed.processes or 1) > 1:
            raise ValueError(
                f"gpipe.stages={stages}: GPipe runs in one process, not in distributed.processes="
                f"{self.distributed.processes}; leave distributed out"
            )
        for key, value in (("mesh.data", self.mesh.data), ("mesh.worker", self.mesh.worker)):
            if value not in (1, None):
                raise ValueError(f"{key}={value}: a stage of GPipe is one device; leave {key} out")

    def _check_processes(self) -> None:
        settings = self.distributed
        explicit = {key: getattr(settings, key) for key in ("coordinator", "processes", "process_id")}
        missing = [f"distributed.{key}" for key, value in explicit.items() if value is None]
        given = [f"distributed.{key}={value}" for key, value in explicit.items() if value is not None]
        if given and missing:
            raise ValueError(f"{given[0]}: needs {' and '.join(missing)}; give all three, or distributed.mode=auto")
        if given and settings.mode == "auto":
            raise ValueError(f"distributed.mode=auto: detects what {given[0]} sets; leave one of them out")
        number, count = settings.process_id, settings.processes
        if number is not None and count is not None and number >= count:
            raise ValueError(
                f"distributed.process_id={number}: must be below distributed.processes={count}, because it counts from "
                f"0; try {count - 1}"
            )

    def stop_check_is_due(self, done: int) -> bool:
        """Whether `train.stop_when` is checked after `done` rounds: every `snapshot_every` of them after warm-up."""
        return done % self.train.snapshot_every == 0 and done * self.loft.local_steps >= self.optimizer.warmup_steps

    @property
    def method(self) -> str:
        """Name of the training method in tables: LoFT-4, IST-4, GPipe-2, local SGD-4, data-parallel SGD-4 or plain SGD.

        Perceptrons are split by IST.
        """
        if self.loft.workers == 1:
            # If momentum is reset every round, it is not the usual plain SGD or GPipe, and the name says so.
            shards = self.mesh.data
            name = "plain SGD" if shards == 1 else f"data-parallel SGD-{shards}"
            name = name if self.gpipe.stages is None else f"GPipe-{self.gpipe.stages}"
            is_usual = self.loft.momentum == "carry" or self.optimizer.momentum == 0
            return name if is_usual else f"{name}, momentum reset"
        if self.loft.partition == "none":
            return ", ".join([f"local SGD-{self.loft.workers}", *self.loft.messages])
        differing = ["exchange"] * (self.loft.sync == "exchange") + ["all groups"] * (self.loft.partition == "all")
        differing += ["ranked"] * (self.loft.deal == "ranked")
        return ", ".join([f"{self.splitting}-{self.loft.workers}", *differing, *self.loft.messages])

    @property
    def splitting(self) -> str:
        """Name of the method that splits the network: LoFT; for perceptrons IST, independent subnet training."""
        return "IST" if self.model.is_perceptron else "LoFT"

    @property
    def total_steps(self) -> int:
        """Local steps of one worker over the whole run."""
        return self.train.rounds * self.loft.local_steps

    @property
    def warning(self) -> str | None:
        """Warning about settings that are allowed but are probably a mistake; None if there are none."""
        if self.optimizer.warmup_steps < self.total_steps:
            return None
        return (
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} is all of the run's {self.total_steps} local steps "
            f"(train.rounds * loft.local_steps), so the learning rate only rises; try {self.total_steps // 10}"
        )

    @property
    def images_per_round(self) -> int:
        """Images that all workers together train on in one round."""
        return self.loft.workers * self.loft.local_steps * self.data.batch_size

    def hash(self) -> str:
        """Return 12 hex digits that identify the settings that differ from their defaults and can change the result.

        A new field does not change the hashes of old configs, as long as its default changes nothing.
        """
        defaults, settings = flatten(Config()), flatten(self)
        named = {k: v for k, v in settings.items() if k not in self.resumable_keys() and v != defaults[k]}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]

    def resumable_keys(self) -> frozenset[str]:
        """Dotted keys that may change between the first start of a run and a resume: they do not affect the result."""
        keys = RESUMABLE if self.train.stop_when is None else RESUMABLE - SNAPSHOT_CADENCE
        if self.model.norms_by_the_batch:
            keys -= {"train.eval_batch_size"}
        return keys | {"gpipe.microbatches"} if self.gpipe.stages is None else keys

    def epochs(self, rounds: int, examples: int) -> float:
        """Number of passes over a training set of `examples` images in `rounds` rounds, as the paper counts them."""
        readers = self.loft.workers if self.data.split == "disjoint" else 1
        return rounds * self.loft.local_steps * self.data.batch_size * readers / examples


def expand_short_form(settings: dict[str, Any]) -> dict[str, Any]:
    """Replace `distributed: auto` by `distributed: {mode: auto}`; YAML reads an unquoted off as false."""
    given = settings.get("distributed")
    if isinstance(given, str) or given is False:
        return {**settings, "distributed": {"mode": given or "off"}}
    if isinstance(given, dict) and given.get("mode") is False:
        return {**settings, "distributed": {**given, "mode": "off"}}
    return settings


# Data sets of users' files that are not streamed, and where they are read from.
_KEPT_ON_DEVICE = {"arrays": "an .npz file", "folder": "a directory of image files", "idx": "a directory of IDX files"}

# If `train.stop_when` is set, the rounds that have a snapshot decide when the run ends.
SNAPSHOT_CADENCE = frozenset({"train.snapshot_every", "train.snapshot_dense_rounds"})
RESUMABLE = SNAPSHOT_CADENCE | frozenset(
    {
        "data.data_dir",
        "data.loading",
        "data.readers",
        "train.eval_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.eval_batch_size",
        "train.trackers",
        "train.profile_rounds",
        "mesh.worker",
        "mesh.data",
        "mesh.cpu_devices",
        "gpipe.cuts",
        "distributed.mode",
        "distributed.coordinator",
        "distributed.processes",
        "distributed.process_id",
        "distributed.start_seconds",
        "distributed.heartbeat_seconds",
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
    return max(d for d in divisors(n) if d <= most)


def divisors(n: int) -> list[int]:
    """All divisors of n, not sorted."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in small]


def nearest_multiple(value: int, factor: int) -> int:
    """The positive multiple of `factor` nearest to `value`."""
    return max(1, round(value / factor)) * factor
