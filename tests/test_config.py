"""Settings from files and options: what is refused and how it is said, defaults, overrides, hash and help."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from settings_helpers import parse, refusal

from loft_jax.cli import CommandLine, read_yaml, run_command, validated
from loft_jax.config import RESUMABLE, Config, flatten
from loft_jax.errors import Preempted, RunStopped, UserError
from loft_jax.sections import Section


def fields(section=Config, prefix=""):
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key, field


@pytest.mark.parametrize("text", ["", "# only a comment", "{}"])
def test_an_empty_file_is_the_default_config(write, text):
    assert read_yaml(write(text)) == {}
    assert parse("--config", write(text)) == Config()


def test_a_file_sets_what_it_names_and_leaves_the_rest_of_a_section_at_its_defaults(write):
    config = parse("--config", write("loft:\n  workers: 8\n"))
    assert flatten(config) == flatten(Config()) | {"loft.workers": 8}


def test_overrides_beat_the_file_and_leave_its_other_keys(write):
    path = write("seed: 5\nloft: {workers: 8, momentum: reset}\n")
    config = parse("--config", path, "--loft.workers", "2", "--train.rounds=7")
    changed = {"seed": 5, "loft.workers": 2, "loft.momentum": "reset", "train.rounds": 7}
    assert flatten(config) == flatten(Config()) | changed


@pytest.mark.parametrize(
    ("argv", "workers"),
    [
        (["--gpipe.stages", "2"], 1),
        (["--gpipe.stages", "null"], 4),
        (["--gpipe.stages", "2", "--loft.workers", "1"], 1),
    ],
)
def test_asking_for_gpipe_is_asking_for_one_worker(argv, workers):
    config = parse(*argv)
    assert config.loft.workers == workers
    assert Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("distributed: auto", "auto"),
        ("distributed: off", "off"),
        ("distributed: 'off'", "off"),
        ("distributed: {mode: auto}", "auto"),
        ("distributed: {mode: off}", "off"),
    ],
)
def test_distributed_may_be_given_as_its_mode(write, text, mode):
    assert parse("--config", write(text)).distributed.mode == mode
    assert parse("--distributed", mode).distributed.mode == mode
    given = parse("--config", write(text), "--distributed.heartbeat_seconds", "7").distributed
    assert (given.mode, given.heartbeat_seconds) == (mode, 7)


def test_cuts_are_text_or_a_list(write):
    for cuts in ("stage1/block1,stage2/block1", "[stage1/block1, stage2/block1]"):
        config = parse("--config", write(f"gpipe: {{stages: 3, cuts: {cuts!r}}}".replace("'[", "[").replace("]'", "]")))
        assert config.gpipe.cut_blocks == ("stage1/block1", "stage2/block1")
    assert Config().gpipe.cut_blocks is None


def test_an_override_fills_a_section_that_the_file_leaves_empty(write):
    assert parse("--config", write("loft:\n"), "--loft.workers", "2").loft.workers == 2


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("loft.partition", "none", "none"),
        ("model.width", "null", None),
        ("model.width", "8", 8),
        ("data.augment", "false", False),
        ("data.augment", "False", False),
        ("loft.rescale", "true", True),
        ("data.name", "123", "123"),
        ("data.data_dir", "none", "none"),
        ("data.data_dir", "null", None),
        ("optimizer.learning_rate", "1e-3", 0.001),
        ("optimizer.warmup_steps", "3", 3),
    ],
)
def test_an_override_is_read_by_the_type_of_its_field(option, text, value):
    got = flatten(parse(f"--{option}", text))[option]
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optimizer: {learning_rate: 1e-3}", "optimizer.learning_rate", 0.001),
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate", 1.0),
        ("optimizer: {momentum: 0}", "optimizer.momentum", 0.0),
        ("loft: {partition: none}", "loft.partition", "none"),
        ("model: {width: null}", "model.width", None),
        ("data: {augment: no}", "data.augment", False),
        ("data: {name: '5'}", "data.name", "5"),
    ],
)
def test_a_yaml_value_is_read_by_the_type_of_its_field(write, text, key, value):
    got = flatten(parse("--config", write(text)))[key]
    assert (got, type(got)) == (value, type(value))


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
    config = validated(settings, "test")
    assert flatten(config) != flatten(Config())


def test_a_commands_own_options_are_returned_beside_the_config():
    command = CommandLine("prog", "description")
    command.parser.add_argument("--workdir")
    arguments, config = command.parse(["--workdir", "runs/x", "--seed", "3"])
    assert arguments.workdir == "runs/x"
    assert config == Config(seed=3)
    assert "did you mean --workdir?" in refusal(command.parse, ["--workdri", "x"])


def test_every_field_is_described_and_shown_by_help_with_type_and_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert [key for key, _ in fields()] == list(flatten(Config()))
    for key, field in fields():
        assert field.description, key
        default = "null" if field.default is None else field.default
        short = rf"(, --{re.escape(key.removesuffix('.mode'))} \S+)?" if key.endswith(".mode") else ""
        option = re.compile(
            rf"--{re.escape(key)} \S+{short} {re.escape(field.description)} \(default: {default}\)( |$)"
        )
        assert option.search(shown), key
    for line in (
        "--loft.workers int sub-CNNs trained side by side; 1 is plain SGD",
        "--model.width int|null channels of the first stage; null: the published width",
        "--loft.partition paper|all|none groups to split",
        "--data.augment bool random crop",
        "--optimizer.weight_decay float L2 penalty",
    ):
        assert line in shown


def test_the_default_config_is_valid_and_survives_a_round_trip():
    config = Config(seed=4, mesh={"worker": 2})
    assert validated(config.model_dump(), "test") == config
    assert validated({}, "test") == Config()


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
    "model.name": "resnet18",
    "model.width": 8,
    "model.stem": "imagenet",
    "data.name": "cifar10",
    "data.data_dir": "/data",
    "data.batch_size": 64,
    "data.split": "disjoint",
    "data.augment": False,
    "data.loading": "stream",
    "data.image_size": 64,
    "data.readers": 2,
    "loft.workers": 2,
    "loft.local_steps": 4,
    "loft.sync": "exchange",
    "loft.partition": "all",
    "loft.momentum": "reset",
    "loft.rescale": True,
    "optimizer.learning_rate": 0.2,
    "optimizer.momentum": 0.5,
    "optimizer.weight_decay": 0.0,
    "optimizer.schedule": "step",
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
    config = parse(*(part for pair in given.items() for part in (f"--{pair[0]}", pair[1])))
    assert flatten(config)[key] == OTHER_VALUES[key] != flatten(Config())[key]
    assert (config.hash() == Config().hash()) == (key in CHANGES_NO_RESULT)


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


@pytest.mark.parametrize(("stop", "code"), [(UserError, 2), (RunStopped, 1)])
def test_a_deliberate_stop_is_one_message_and_an_exit_code(capsys, stop, code):
    def main():
        raise stop("too bad")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == code
    assert capsys.readouterr().err == "error: too bad\n"


def test_a_run_that_was_asked_to_leave_ends_well(capsys):
    def main():
        raise Preempted("saved")

    run_command(main)
    assert capsys.readouterr().out == "saved\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


@pytest.mark.parametrize("module", ["cli", "config", "run_directory", "train", "theory"])
def test_what_reads_settings_loads_neither_jax_nor_numpy(module):
    code = f"import loft_jax.{module}, sys; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (done.stdout, done.stderr) == ("[]\n", "")
