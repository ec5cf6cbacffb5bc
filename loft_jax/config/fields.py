"""Every setting: one field each, with its type, default, bounds and meaning. `--help` and validation read this file.

Imports neither JAX nor NumPy, so a typo is reported before either is loaded.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from loft_jax.errors import did_you_mean, format_literal, format_value, path_problem

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


# Those in the first line declare their filter groups; those of the others are found by tracing.
MODELS = (
    *("preresnet18", "preresnet20", "preresnet34", "resnet18", "resnet34"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "resnet20", "resnet56", "resnet50", "resnet101", "wideresnet28_10"),
    *("mobilenetv2", "densenet121", "mlp", "lenet300", "conv2", "conv4", "conv6"),
)
_PERCEPTRONS = ("mlp", "lenet300")
# Options of networks of the package in `model.options`: name -> option -> its values.
FAMILY_OPTIONS: dict[str, dict[str, Sequence[Any]]] = {
    "mlp": {"hidden_layers": range(1, 33), "norm": ("running", "batch"), "head_norm": (False, True)},
}


class Model(Section):
    name: str = Field(
        "preresnet20",
        description=f"architecture: {', '.join(MODELS)}; or a network of your own, as package.module:callable or "
        "path/to/file.py:callable",
    )
    options: dict[str, Any] = Field(
        {},
        description="keyword arguments of a network of your own; on the command line as '{depth: 3, wide: true}'. "
        "mlp has hidden_layers (2), norm: running (statistics that are estimated again before an evaluation) or batch "
        "(those of the batch, in evaluation too), and head_norm: true (a norm in place of the head's bias)",
    )
    weights: str | None = Field(
        None,
        description="file of weights to start from, with the names that Flax gives: .safetensors, .npz, .msgpack, or "
        "an Orbax directory; null: initialised at random",
    )
    width: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None, description="channels of the first stage; null: the published width (64; preresnet20: 16)"
    )
    stem: Literal["cifar", "imagenet"] = Field("cifar", description="3x3, or 7x7 stride 2 with max-pooling")

    @field_validator("name")
    @classmethod
    def _known_or_own(cls, name: str) -> str:
        where, colon, attribute = name.rpartition(":")
        if not colon:
            if name not in MODELS:
                near = did_you_mean(name, MODELS)
                raise ValueError(f"must be one of {', '.join(MODELS)}, or package.module:callable{near}")
        elif not attribute.isidentifier():
            raise ValueError(f"{format_value(attribute)} after the colon must be the name of a callable")
        elif where.endswith(".py"):
            if problem := path_problem(where):
                raise ValueError(f"the path {problem}")
        elif not all(part.isidentifier() for part in where.split(".")):
            raise ValueError(f"{format_value(where)} before the colon must be a module, or a file that ends in .py")
        return name

    @field_validator("weights")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        if value is not None and (problem := path_problem(value)):
            raise ValueError(f"{problem}; use the name of a file of weights")
        return value

    @field_validator("options", mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        """Read options that come as text."""
        if isinstance(value, str):
            try:
                value = yaml.safe_load(value)
            except yaml.YAMLError:
                raise ValueError("must be a mapping of names to values, as '{depth: 3}'") from None
        if not isinstance(value, dict) or not all(isinstance(key, str) and key.isidentifier() for key in value):
            raise ValueError("must be a mapping of names to values, as '{depth: 3}'")
        return value

    def check_options(self) -> None:
        """Raise ValueError unless a network of the package has these options, and they these values."""
        if self.own:
            return
        known = FAMILY_OPTIONS.get(self.name, {})
        label = f"model.options={format_literal(self.options)}: {self.name}"
        if not known and self.options:
            raise ValueError(
                f"{label} takes none; only {', '.join(FAMILY_OPTIONS)} and networks of your own "
                "(model.name=module:callable) do"
            )
        hint = ", ".join(known)
        for option, value in self.options.items():
            if option not in known:
                raise ValueError(f"{label} has no option {option}{did_you_mean(option, known, f'it has {hint}')}")
            values = known[option]
            # Of equal numbers and booleans one is no value of the option.
            if not any(type(value) is type(allowed) and value == allowed for allowed in values):
                texts = [format_literal(allowed) for allowed in values]
                texts = texts if len(texts) < 4 else [f"{texts[0]} to {texts[-1]}"]
                raise ValueError(f"{label} has {option}={format_literal(value)}, which must be {' or '.join(texts)}")

    @property
    def own(self) -> bool:
        """Whether the network is the user's."""
        return ":" in self.name

    @property
    def is_perceptron(self) -> bool:
        """Whether the network is a perceptron of the package."""
        return self.name in _PERCEPTRONS

    @property
    def norms_by_the_batch(self) -> bool:
        """Whether the network's norms use the statistics of the batch in evaluation too."""
        return not self.own and self.options.get("norm") == "batch"


class Data(Section):
    name: str = Field(
        "digits",
        min_length=1,
        description="digits, folder (of image files, a folder for each class), idx (MNIST's file format), arrays (of "
        "an .npz file), or any TFDS image-classification data set",
    )
    data_dir: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="directory of folder or idx, .npz file of arrays, or TFDS data directory; null: TFDS's default",
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2,
        description="share of each class that is held out as test images from a folder that has none; always the same "
        "images, whatever the seed",
    )
    validation: Annotated[NonNegativeFloat, Field(le=MOST)] = Field(
        0.0,
        description="training images that are held out for validation/loss and validation/accuracy: a share below 1, "
        "or a number of images; drawn by the seed, from each class its part",
    )
    batch_size: PositiveInt = Field(32, description="images per worker and local step")
    split: Literal["shared", "disjoint"] = Field(
        "shared",
        description="shared: every worker passes over the whole training set; disjoint: in each epoch a worker passes "
        "over its own part of it",
    )
    augment: bool = Field(True, description="random crop, and flip (digits: crop only) of training images")
    flip: bool | None = Field(
        None,
        description="whether a mirrored image keeps its class, so that data.augment mirrors images; null: true, except "
        "for digits",
    )
    loading: Literal["auto", "device", "stream"] = Field(
        "auto",
        description="device: keep the data set on every device; stream: decode batches when they are needed; auto: "
        "device if all images have the same size and fit there",
    )
    image_size: PositiveInt | None = Field(
        None,
        description="height and width to which images of mixed sizes are cropped (folder: all images, of any size); "
        "null: 224, except for folder, whose images then keep their size and must all have the same",
    )
    readers: Count | None = Field(
        None,
        description="processes that decode streamed images, for each process of the run; 0: threads decode them "
        "instead; null: one per core",
    )

    @model_validator(mode="before")
    @classmethod
    def _size_of_crops(cls, settings: Any) -> Any:
        """Set image_size to 224 if it is null, except for a folder."""
        if not isinstance(settings, dict) or settings.get("name") == "folder":
            return settings
        return settings if settings.get("image_size") is not None else {**settings, "image_size": 224}

    @field_validator("validation")
    @classmethod
    def _is_a_share_or_a_number(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"must be a share below 1, or a whole number of images; try {int(value)}")
        return value

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        parts = value.split("/")
        if len(value) > 200 or not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", part) for part in parts):
            raise ValueError("must be digits, folder, idx, arrays, or a TFDS name as in cifar10 or mnist_corrupted/fog")
        return value

    @field_validator("data_dir")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        if value is not None and (problem := path_problem(value)):
            raise ValueError(f"{problem}; use the name of a directory, or of an .npz file")
        return value


class Loft(Section):
    workers: PositiveInt = Field(
        4, description="sub-CNNs trained side by side; 1 is plain SGD, and the default if gpipe.stages is set"
    )
    local_steps: PositiveInt = Field(16, description="SGD steps of a worker between two syncs")
    sync: Literal["psum", "exchange"] = Field(
        "psum",
        description="how owned slices are sent at the end of a round; psum: they are summed into the full CNN on every "
        "device; exchange: each goes directly from its owner to its next owner (fewer bytes, and no device holds the "
        "full CNN)",
    )
    partition: Literal["paper", "all", "none"] = Field(
        "paper",
        description="groups to split; paper: those that the model declares; all: every group; none: no group (local "
        "SGD)",
    )
    momentum: Literal["carry", "reset"] = Field(
        "carry",
        description="momentum after a sync; carry: it travels with its filters; reset: it starts at zero again",
    )
    rescale: bool = Field(
        False,
        description="multiply a split block's residual branch by the number of workers in local training "
        "(in resnet18 and resnet34 the norm after it cancels most of this)",
    )


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
