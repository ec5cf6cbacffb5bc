"""The train command: what it writes, how it resumes, and how it says no."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
import yaml
from helpers import CONFIGS
from helpers.runs import SETTINGS, assert_same_state, config_of, opened, settings_with, train_rounds
from helpers.tiny import flat

from loft_jax import create_model, load_checkpoint
from loft_jax.config.config import Config
from loft_jax.config.loading import read_yaml
from loft_jax.data.batches import normalise
from loft_jax.data.load import load_dataset
from loft_jax.devices.setup import configure_jax
from loft_jax.errors import RunStopped, UserError
from loft_jax.lottery import LotteryConfig
from loft_jax.storage.checkpoints import read_state
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.storage.saved import saved_rounds
from loft_jax.theory.config import TheoryConfig
from loft_jax.train.__main__ import run
from loft_jax.train.experiment import Experiment
from loft_jax.train.overview import print_setup


def command(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "loft_jax.train", *map(str, arguments)], capture_output=True, text=True, **kwargs
    )


def test_every_round_has_one_row(finished):
    rows = RunDirectory(finished[0]).rows()
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10, 12]
    assert rows[6]["epoch"] == pytest.approx(12 * 8 / 1437)
    assert [row["round"] for row in rows if "test/accuracy" in row] == [0, 3, 6]
    assert not any("seconds/compile" in row for row in rows[2:]), "nothing compiles after the first round"
    assert all(row["images_per_second"] > 0 and row["train/loss"] > 0 for row in rows[1:])
    assert {"seconds/train", "seconds/sync"} <= rows[1].keys()


def test_the_summary_is_the_last_round_and_adds_up_the_rows(finished):
    path, summary = finished
    rows = RunDirectory(path).rows()
    assert json.loads((path / "summary.json").read_text()) == summary
    assert summary["test/accuracy"] == rows[-1]["test/accuracy"]
    assert summary["images"] == 4 * 2 * 8 * 6
    assert summary["seconds/train"] == pytest.approx(sum(row.get("seconds/train", 0) for row in rows))
    assert summary["config_hash"] == config_of().hash()
    # A ring of four devices, six rounds.
    assert rows[1]["bytes_on_the_wire"] == 2 * 3 * summary["sync_payload_bytes"]
    assert summary["bytes_on_the_wire"] == 6 * rows[1]["bytes_on_the_wire"]


def test_checkpoints_are_kept_apart_from_snapshots(finished):
    assert saved_rounds(finished[0] / "checkpoints") == [4, 6]
    assert saved_rounds(finished[0] / "snapshots") == [0, 4, 6]


def test_the_resolved_config_is_written(finished):
    assert Config.model_validate(yaml.safe_load((finished[0] / "config.yaml").read_text())) == config_of()


def test_a_loaded_checkpoint_evaluates_as_the_run_did(finished):
    """Outside the mesh, with the contract's names alone."""
    path, summary = finished
    checkpoint = load_checkpoint(path)
    assert checkpoint["round"] == 6
    assert all(
        type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in jax.tree.leaves(checkpoint["variables"])
    )
    assert checkpoint["config"] == config_of()
    data = load_dataset(checkpoint["config"])
    images = normalise(data.test_images, *data.channel_statistics)
    logits = create_model("preresnet20", 10, width=4).apply(checkpoint["variables"], images)
    assert float(np.mean(np.argmax(logits, axis=-1) == data.test_labels)) == pytest.approx(summary["test/accuracy"])


def test_any_saved_round_can_be_loaded_and_no_other(finished):
    assert load_checkpoint(finished[0], 0)["round"] == 0
    with pytest.raises(UserError, match="round 5 is not saved; try 4; there are 0, 4, 6"):
        load_checkpoint(finished[0], 5)
    with pytest.raises(UserError, match="holds no checkpoints"):
        load_checkpoint(finished[0].parent)


@pytest.mark.full
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(finished, tmp_path):
    train_rounds(tmp_path / "resumed", config_of(), 5)
    run(config_of(), opened(tmp_path / "resumed", config_of()))
    assert_same_state(read_state(tmp_path / "resumed/checkpoints", 6), read_state(finished[0] / "checkpoints", 6))
    rows = RunDirectory(tmp_path / "resumed").rows()
    assert [row["round"] for row in rows] == list(range(7)), "rows past the checkpoint must be cut"


@pytest.mark.full
def test_a_run_resumes_on_another_number_of_devices_and_cadence(finished, tmp_path):
    train_rounds(tmp_path / "run", config_of(), 2)
    changed = config_of(mesh={"worker": 2}, train={**SETTINGS["train"], "eval_every": 6, "keep_checkpoints": 1})
    run(changed, opened(tmp_path / "run", changed))
    one = flat(load_checkpoint(tmp_path / "run")["variables"]["params"])
    other = flat(load_checkpoint(finished[0])["variables"]["params"])
    for path in one:
        np.testing.assert_allclose(one[path], other[path], atol=1e-4, err_msg=path)


def test_a_directory_of_another_config_is_refused(finished):
    with pytest.raises(UserError, match=r"another config \(seed: 0 there, 1 now; loft\.workers: 4 there, 2 now\)"):
        opened(finished[0], Config.model_validate({**settings_with(loft={"workers": 2}), "seed": 1}))


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        opened(tmp_path, config_of())


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--workdir .*/file/run: cannot be written \(Not a directory\)"):
        opened(tmp_path / "file/run", config_of())


def test_a_start_that_failed_claims_no_directory(tmp_path):
    directory = opened(tmp_path / "run", config_of(loft={"workers": 3}))
    with pytest.raises(UserError, match="must divide every partitioned width"):
        run(config_of(loft={"workers": 3}), directory)
    directory.close()
    (tmp_path / "run/.config.yaml.tmp").touch()
    assert opened(tmp_path / "run", config_of()).read_config() == config_of()


def test_a_finished_run_keeps_its_config_and_a_damaged_summary_is_no_summary(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    opened(tmp_path / "run", config_of(mesh={"cpu_devices": 2}))
    assert RunDirectory(tmp_path / "run").read_config() == config_of()
    (tmp_path / "run/summary.json").write_text("")
    assert RunDirectory(tmp_path / "run").summary() is None


def test_a_row_cut_off_by_a_crash_is_forgotten(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    directory.append({"round": 1})
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"round": 2, "tr')
    directory.forget_after(1)
    directory.append({"round": 2})
    assert directory.rows() == [{"round": 1}, {"round": 2}]


@pytest.mark.full
@pytest.mark.parametrize(("learning_rate", "steps", "what"), [(1e18, 2, "loss is"), (1e38, 1, "a variable is")])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(learning_rate, steps, what, tmp_path):
    schedule = {**SETTINGS["train"], "checkpoint_every": 1, "eval_every": 6}
    config = config_of(optimizer={"learning_rate": learning_rate}, loft={"local_steps": steps}, train=schedule)
    with pytest.raises(RunStopped) as stop:
        run(config, opened(tmp_path / "run", config))
    last = saved_rounds(tmp_path / "run/checkpoints")[-1]
    assert what in str(stop.value)
    assert f" to {learning_rate:.3g} over the round)" in str(
        stop.value
    ) or f"learning rate {learning_rate:.3g})" in str(stop.value)
    assert f"the last good checkpoint is that of round {last}" in str(stop.value)
    assert all(
        np.isfinite(leaf).all() for leaf in flat(load_checkpoint(tmp_path / "run")["variables"]["params"]).values()
    )
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loft": {"workers": 3}}, r"loft.workers=3: must divide every partitioned width \(8, 16\); try 2"),
        (
            {"mesh": {"worker": 4, "data": 2}},
            "mesh.worker=4: with mesh.data=2 it needs 8 devices, but only 4 cpu devices",
        ),
        (
            {"mesh": {"data": 8}},
            "mesh.data=8: only 4 cpu devices are available; try 4; on a CPU raise mesh.cpu_devices",
        ),
    ],
)
def test_what_does_not_fit_model_or_devices_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Experiment.build(config_of(**changes))


def test_idle_devices_are_named_and_what_would_use_them(capsys):
    print_setup(Experiment.build(config_of(loft={"workers": 1})))
    said = capsys.readouterr().out
    assert (
        "devices   1 cpu of 4, idle: cpu:1, cpu:2, cpu:3\nidle      3 of 4 devices; to use all: mesh.data=4, or" in said
    )
    print_setup(Experiment.build(config_of()))
    assert "idle    " not in capsys.readouterr().out


def test_what_a_local_step_sends_is_said_where_a_worker_has_several_devices(capsys):
    experiment = Experiment.build(config_of(loft={"workers": 1}, mesh={"data": 4}))
    print_setup(experiment)
    said, step = capsys.readouterr().out, experiment.bill.programs["step"].traffic
    summed, sent = (f"{bytes_ / 1e6:.2f} MB" for bytes_ in (step.payloads["all-reduce"], step.sent))
    assert f"step      {summed} summed over a worker's devices; each sends {sent}, in a ring" in said
    assert step.sent > 1e5
    print_setup(Experiment.build(config_of()))
    assert "step  " not in capsys.readouterr().out


def test_deterministic_asks_xla_for_deterministic_kernels(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    configure_jax(config_of())
    assert "deterministic" not in os.environ["XLA_FLAGS"]
    configure_jax(config_of(train={"deterministic": True}))
    assert "--xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"]


# The command line, as a user sees it.


@pytest.fixture(scope="module")
def yaml_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loft.worker", "2"), "error: unknown option --loft.worker; did you mean --loft.workers?; see --help\n"),
        (("--config", "none.yaml"), "error: --config none.yaml: no such file\n"),
        (("--loft.local_steps", "0"), "loft.local_steps='0': must be greater than or equal to 1; try 1\n"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    result = command(*arguments, "--workdir", tmp_path / "run")
    assert result.returncode == 2
    assert result.stderr.endswith(message)
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.compat
def test_the_command_trains_then_says_that_the_run_is_complete(yaml_file, tmp_path):
    first = command("--config", yaml_file, "--workdir", tmp_path / "run", "--train.rounds", 1)
    assert first.returncode == 0, first.stderr
    for line in (
        "devices   4 cpu of 4, idle: none",
        "mesh      worker 4 x data 1",
        "sync      ",
        "accuracy  ",
        "measured  ",
    ):
        assert line in first.stdout
    again = command("--config", yaml_file, "--workdir", tmp_path / "run", "--train.rounds", 1)
    assert again.returncode == 0
    assert "already complete" in again.stdout
    assert "accuracy" in again.stdout


@pytest.mark.full
def test_a_dry_run_prints_sizes_and_writes_nothing(yaml_file, tmp_path):
    result = command("--config", yaml_file, "--dry_run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("parameters", "summed over the workers", "begin", "step", "sync", "temporary"):
        assert word in result.stdout
    assert not list(tmp_path.iterdir())


# The files in configs/.

CONFIG_FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_holds_only_what_differs(path):
    from loft_jax.config.config import flatten

    settings, kind = read_yaml(path), TheoryConfig if path.stem == "theory" else Config
    if path.stem.startswith("lottery_"):
        kind = partial(LotteryConfig, data={"validation": 0.5})
    given = {f"{section}.{key}" for section, fields in settings.items() for key in fields}
    config, defaults = flatten(kind(**settings)), flatten(kind())
    assert given == {key for key in config if config[key] != defaults[key]}
    assert path.read_text().startswith("# ")
    assert f"--config configs/{path.name}" in path.read_text(), "the header shows the command"


def test_every_loft_row_of_the_papers_table_has_a_config():
    names = {path.stem for path in CONFIG_FILES}
    for setting in ("cifar10_preresnet34", "cifar10_resnet34", "cifar100_preresnet34", "cifar100_resnet34"):
        assert {f"{setting}_sgd", f"{setting}_loft2", f"{setting}_loft4"} <= names
    assert {f"imagenet_preresnet18_{kind}" for kind in ("sgd", "loft2", "loft4")} <= names
