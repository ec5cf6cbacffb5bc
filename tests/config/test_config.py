"""The config: its values, its hash, and what is derived from it."""

import pytest
from helpers.settings_helpers import parse

from loft_jax.config.config import RESUMABLE, Config, flatten
from loft_jax.config.loading import validate_settings


def test_the_default_config_is_valid_and_survives_a_round_trip():
    config = Config(seed=4, mesh={"worker": 2})
    assert validate_settings(config.model_dump(), "test") == config
    assert validate_settings({}, "test") == Config()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"warmup_steps": 1599}},
        {"mesh": {"worker": 4, "data": 32}},
        {"optimizer": {"momentum": 0, "weight_decay": 0, "label_smoothing": 0.999}},
        {"seed": 2**31 - 1},
        {"loft": {"workers": 1, "local_steps": 1}, "train": {"rounds": 1}},
    ],
)
def test_values_at_their_bounds_are_accepted(settings):
    config = validate_settings(settings, "test")
    assert flatten(config) != flatten(Config())


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({}, "44136fa355b3"),
        ({"seed": 3, "loft": {"workers": 2}, "optimizer": {"learning_rate": 0.01}}, "72ef78131692"),
    ],
)
def test_hashes_are_pinned(settings, digest):
    assert Config(**settings).hash() == digest


def test_minus_zero_is_zero():
    one, other = (Config(optimizer={"momentum": zero, "weight_decay": zero}) for zero in (-0.0, 0.0))
    assert one.hash() == other.hash()
    assert str(one) == str(other)


OTHER_VALUES = {
    "seed": 1,
    "precision": "bfloat16",
    "matmul_precision": "highest",
    "model.name": "resnet18",
    "model.options": {"depth": 3},
    "model.weights": "start.npz",
    "model.width": 8,
    "model.stem": "imagenet",
    "data.name": "cifar10",
    "data.data_dir": "/data",
    "data.test_share": 0.3,
    "data.validation": 0.1,
    "data.batch_size": 64,
    "data.split": "disjoint",
    "data.augment": False,
    "data.flip": False,
    "data.loading": "stream",
    "data.image_size": 64,
    "data.readers": 2,
    "loft.workers": 2,
    "loft.local_steps": 4,
    "loft.sync": "exchange",
    "loft.partition": "all",
    "loft.momentum": "reset",
    "loft.rescale": True,
    "loft.deal": "ranked",
    "loft.shared_every": 2,
    "loft.wire": "int8",
    "loft.outer": "nesterov",
    "loft.outer_learning_rate": 0.5,
    "loft.outer_momentum": 0.8,
    "loft.outer_filters": True,
    "loft.stagger": 2,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 0.2,
    "optimizer.momentum": 0.5,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.99,
    "optimizer.epsilon": 1e-6,
    "optimizer.weight_decay": 0.0,
    "optimizer.schedule": "step",
    "optimizer.milestones": "100,200",
    "optimizer.decay": 0.5,
    "optimizer.warmup_steps": 5,
    "optimizer.label_smoothing": 0.1,
    "train.rounds": 7,
    "train.eval_every": 3,
    "train.checkpoint_every": 3,
    "train.keep_checkpoints": 3,
    "train.snapshot_every": 3,
    "train.snapshot_dense_rounds": 3,
    "train.stop_when": 0.1,
    "train.stop_snapshots": 2,
    "train.stop_groups": "mean",
    "train.norm_batches": 3,
    "train.eval_batch_size": 3,
    "train.deterministic": True,
    "train.trackers": "wandb,mlflow",
    "train.profile_rounds": "2,3",
    "mesh.worker": 2,
    "mesh.data": 2,
    "mesh.cpu_devices": 2,
    "gpipe.stages": 2,
    "gpipe.microbatches": 2,
    "gpipe.cuts": "paper",
    "distributed.mode": "auto",
    "distributed.coordinator": "10.0.0.1:8476",
    "distributed.processes": 2,
    "distributed.process_id": 1,
    "distributed.start_seconds": 3,
    "distributed.heartbeat_seconds": 3,
}
# These go together.
EXPLICIT = {key: OTHER_VALUES[key] for key in OTHER_VALUES if key.startswith("distributed.") and "_seconds" not in key}
EXPLICIT.pop("distributed.mode")
CHANGES_NO_RESULT = {
    "data.data_dir",
    "data.loading",
    "data.readers",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.snapshot_every",
    "train.snapshot_dense_rounds",
    "train.eval_batch_size",
    "train.trackers",
    "train.profile_rounds",
    "mesh.worker",
    "mesh.data",
    "mesh.cpu_devices",
    "gpipe.microbatches",
    "gpipe.cuts",
    *(key for key in OTHER_VALUES if key.startswith("distributed.")),
}


def test_micro_batches_change_the_result_of_a_pipeline():
    one, other = (Config(gpipe={"stages": 2, "microbatches": parts}) for parts in (2, 4))
    assert one.hash() != other.hash()


def test_every_field_is_in_the_table_of_other_values():
    assert set(OTHER_VALUES) == set(flatten(Config()))
    assert set(flatten(Config())) >= RESUMABLE


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_the_hash_changes_with_every_field_that_can_change_the_result_and_no_other(key):
    given = EXPLICIT if key in EXPLICIT else {key: OTHER_VALUES[key]}
    # Digits are read from no directory and not streamed.
    base = {"data.name": "cifar10"} if key in ("data.data_dir", "data.loading") else {}
    base |= {"model.name": "nets.py:Net"} if key == "model.options" else {}
    base |= {"optimizer.name": "adamw"} if key in ("optimizer.beta1", "optimizer.beta2", "optimizer.epsilon") else {}
    base |= {"loft.outer": "nesterov"} if key.startswith("loft.outer_") else {}
    base |= {"loft.sync": "exchange"} if key == "loft.stagger" else {}
    base |= {"optimizer.schedule": "step"} if key in ("optimizer.milestones", "optimizer.decay") else {}
    one, other = (parse(*(f"--{k}={v}" for k, v in settings.items())) for settings in (base, base | given))
    assert flatten(other)[key] == OTHER_VALUES[key] != flatten(one)[key]
    assert (one.hash() == other.hash()) == (key in CHANGES_NO_RESULT)


@pytest.mark.parametrize(
    ("split", "workers", "epochs"),
    [("shared", 4, 20.48), ("shared", 1, 20.48), ("disjoint", 4, 81.92), ("disjoint", 1, 20.48)],
)
def test_epochs_are_counted_as_the_paper_counts_them(split, workers, epochs):
    config = Config(loft={"workers": workers, "local_steps": 16}, data={"batch_size": 128, "split": split})
    assert config.epochs(500, 50_000) == pytest.approx(epochs, rel=1e-12)
    assert config.epochs(0, 50_000) == 0


def test_warm_up_as_long_as_the_run_is_a_warning():
    settings = {"train": {"rounds": 5}, "loft": {"local_steps": 8}}
    assert Config(**settings, optimizer={"warmup_steps": 39}).warning is None
    assert (
        Config(**settings, optimizer={"warmup_steps": 40}).warning
        == "optimizer.warmup_steps=40 is all of the run's 40 local steps (train.rounds * loft.local_steps), so the "
        "learning rate only rises; try 4"
    )


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().loft.workers = 2


def test_a_method_says_what_differs_from_the_papers():
    assert Config(loft={"partition": "all"}).method == "LoFT-4, all groups"
    assert Config(loft={"partition": "all", "sync": "exchange"}).method == "LoFT-4, exchange, all groups"


def test_a_perceptron_that_is_split_is_independent_subnet_training():
    assert [Config(model={"name": name}).method for name in ("mlp", "lenet300", "conv2")] == [
        "IST-4",
        "IST-4",
        "LoFT-4",
    ]
    assert Config(model={"name": "mlp"}, loft={"partition": "none"}).method == "local SGD-4"
    reset = {"workers": 1, "momentum": "reset"}
    assert Config(loft=reset).method == "plain SGD, momentum reset"
    assert Config(loft=reset, optimizer={"momentum": 0}).method == "plain SGD"
    assert Config(loft={"workers": 1}, mesh={"data": 4}).method == "data-parallel SGD-4"


def test_norms_by_the_batch_make_the_size_of_evaluated_batches_part_of_the_result():
    one, other = (Config(model={"name": "mlp"}, train={"eval_batch_size": size}) for size in (250, 500))
    assert one.hash() == other.hash()
    batch = {"name": "mlp", "options": {"norm": "batch"}}
    one, other = (Config(model=batch, train={"eval_batch_size": size}) for size in (250, 500))
    assert one.hash() != other.hash()
