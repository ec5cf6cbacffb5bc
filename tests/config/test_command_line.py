"""A command line: which settings come from file and options, what `--help` says, and how a command ends."""

import argparse
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers import TESTS
from helpers.settings_helpers import parse, refusal

from loft_jax.config.command_line import CommandLine, run_command, whole_number
from loft_jax.config.config import Config, flatten
from loft_jax.config.loading import iterate_fields, read_yaml
from loft_jax.errors import Preempted, RunStopped, UserError


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
    got = flatten(parse("--data.name", "cifar10", f"--{option}", text))[option]
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


def test_a_commands_own_options_are_returned_beside_the_config():
    command = CommandLine("prog", "description")
    command.parser.add_argument("--workdir")
    arguments, config = command.parse(["--workdir", "runs/x", "--seed", "3"])
    assert arguments.workdir == "runs/x"
    assert config == Config(seed=3)
    assert "did you mean --workdir?" in refusal(command.parse, ["--workdri", "x"])


def test_every_field_is_described_and_shown_by_help_with_type_and_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help", "all")
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert [key for key, _ in iterate_fields(Config)] == list(flatten(Config()))
    for key, field in iterate_fields(Config):
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


@pytest.mark.parametrize(("stop", "code"), [(UserError, 2), (RunStopped, 1)])
def test_a_deliberate_stop_is_one_message_and_an_exit_code(capsys, stop, code):
    def main():
        raise stop("too bad")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == code
    assert capsys.readouterr().err == "error: too bad\n"


def test_a_run_that_was_stopped_on_request_ends_with_code_0(capsys):
    def main():
        raise Preempted("saved")

    run_command(main)
    assert capsys.readouterr().out == "saved\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


@pytest.mark.parametrize(
    "module", ["config.command_line", "storage.run_directory", "train.__main__", "theory.__main__"]
)
def test_what_reads_settings_loads_neither_jax_nor_numpy(module):
    code = f"import loft_jax.{module}, sys; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TESTS)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_an_interrupted_command_says_how_to_resume_and_ends_as_shells_expect(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_command(main, interrupted="interrupted; run the same command again to resume")
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to resume\n"


def test_a_reader_that_has_ended_is_no_complaint():
    code = "from loft_jax.config import run_command; run_command(lambda: [print(i, flush=True) for i in range(10**5)])"
    # What stdout still holds at exit is what Python would complain of.
    buffered = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, "PYTHONUNBUFFERED": ""}}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **buffered) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)


def test_a_whole_number_out_of_range_is_refused_with_the_nearest_bound():
    for text, nearest in (("1", 2), ("10", 9)):
        with pytest.raises(argparse.ArgumentTypeError, match=f"at least 2 and at most 9; try {nearest}$"):
            whole_number(2, 9)(text)


def test_a_platform_without_a_device_is_one_message(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")

    def main():
        raise RuntimeError("Unable to initialize backend 'tpu': INTERNAL: no libtpu\nmore")

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: JAX finds no device to run on (JAX_PLATFORMS is tpu): Unable to initialize backend 'tpu': INTERNAL: no "
        "libtpu\n"
    )


def test_an_assertion_of_our_own_keeps_its_traceback():
    def main():
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        run_command(main)


# Every command that computes on a device, on what can be had without training; `tickets` and `retrain` read a run.
ON_A_DEVICE = {
    "train": "train --config digits --workdir new",
    "dry run": "train --config digits --dry_run",
    "lottery": "lottery --data.validation 0.1 --workdir new",
    "cost": "cost --config digits --no_compile",
    "the paper's costs": "cost --paper",
    "theory": "theory --out new",
    "bench": "bench --pairs 1",
    "tickets": "tickets RUN",
    "retrain": "retrain RUN --ticket r6-group-l2-0.5 --seeds 9",
}


@pytest.mark.full
@pytest.mark.skipif(find_spec("jax_cuda12_plugin") is not None, reason="there may be a GPU")
@pytest.mark.parametrize(("command", "platform"), [("train", "tpu"), *((command, "cuda") for command in ON_A_DEVICE)])
def test_a_platform_that_is_not_there_is_one_message_in_every_command(command, platform, tmp_path, request):
    words = ON_A_DEVICE[command].split()
    if "RUN" in words:
        words[words.index("RUN")] = str(request.getfixturevalue("run"))
    done = subprocess.run(
        [sys.executable, "-m", f"loft_jax.{words[0]}", *words[1:]],
        env=os.environ | {"JAX_PLATFORMS": platform},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith("working ")]
    assert said.startswith(f"error: JAX finds no device to run on (JAX_PLATFORMS is {platform}): ")
    assert len(said) > len("error: JAX finds no device to run on (JAX_PLATFORMS is cuda): ") + 20
    assert done.returncode == 2
