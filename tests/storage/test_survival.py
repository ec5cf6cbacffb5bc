"""What a run lives through: signals, damaged checkpoints, a full disk, and a second run in its directory."""

import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import TESTS
from helpers.runs import assert_same_state, config_of, opened
from helpers.survival import DisturbedRun, campaign, damage

from loft_jax import load_checkpoint
from loft_jax.errors import Preempted, RunStopped, UserError
from loft_jax.signals import Preemption
from loft_jax.storage.checkpoints import Store, _ignore_late_ends, newest_sound, read_state
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.storage.saved import saved_rounds
from loft_jax.train.experiment import Experiment
from loft_jax.train.trainer import Trainer, train_to_the_end

# Orbax leaves a reader's event loop closed under it when a file cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DAMAGE = ("truncate", "flip", "halve")


# What a sync can keep beside the variables, all of it.
MESSAGES = ("--loft.sync", "exchange", "--loft.wire", "int8", "--loft.shared_every", 2, "--loft.stagger", 2)
MESSAGES += ("--loft.outer", "nesterov", "--loft.outer_filters", "true")


def assert_survives(path, processes, kills, terminations, rounds, options=()):
    options += ("--train.rounds", rounds, "--train.checkpoint_every", 3, "--train.eval_every", rounds)
    options += ("--train.snapshot_every", rounds)
    undisturbed = DisturbedRun(path / "undisturbed", processes, options, heartbeat=30)
    undisturbed.finish()
    disturbed = DisturbedRun(path / "disturbed", processes, options, heartbeat=30)
    signals, moments = campaign(kills, terminations, rounds)
    for signal_number, round_number in signals:
        disturbed.disturb(signal_number, round_number, moments)
    disturbed.finish()
    states = [read_state(r.path / "checkpoints", rounds) for r in (disturbed, undisturbed)]
    assert_same_state(*states)
    assert [row["round"] for row in RunDirectory(disturbed.path).rows()] == list(range(rounds + 1))


@pytest.mark.campaign
def test_a_killed_and_preempted_run_ends_bit_equal_to_an_undisturbed_one(tmp_path):
    assert_survives(tmp_path, processes=1, kills=1, terminations=1, rounds=20)


@pytest.mark.campaign
@pytest.mark.parametrize("processes", [1, 2])
def test_ten_kills_with_all_that_syncs_keep_beside_the_variables_end_bit_equal(processes, tmp_path):
    assert_survives(tmp_path, processes, kills=10, terminations=2, rounds=100, options=MESSAGES)


@pytest.mark.campaign
@pytest.mark.parametrize("processes", [1, 2])
def test_the_campaign_of_twenty_kills_and_twenty_preemptions(processes, tmp_path):
    assert_survives(tmp_path, processes, kills=20, terminations=20, rounds=400)


@pytest.fixture(scope="module")
def experiment():
    """That of the finished run; its programs compile once."""
    return Experiment.build(config_of())


@pytest.mark.full
def test_a_preempted_run_saves_its_round_and_goes_on_from_it(experiment, finished, tmp_path, capsys):
    path, preemption = tmp_path / "run", Preemption()
    directory = opened(path, config_of())
    preemption.requested = True
    with pytest.raises(Preempted, match="after round 0 of 6, which is saved"):
        train_to_the_end(experiment, directory, preemption=preemption)
    assert saved_rounds(path / "checkpoints") == [0]
    with Trainer(experiment, directory, preemption=preemption) as trainer:
        trainer.start()
        trainer.train_one_round()
    assert saved_rounds(path / "checkpoints") == [0, 1], "off its cadence"
    train_to_the_end(experiment, directory, preemption=Preemption())
    assert "resumed after round 1" in capsys.readouterr().out
    assert_same_state(read_state(path / "checkpoints", 6), read_state(finished[0] / "checkpoints", 6))


def test_sigterm_is_a_request_inside_the_block_and_no_longer_behind_it():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.requested
        signal.raise_signal(signal.SIGTERM)
        assert preemption.requested
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.full
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_never_a_wrong_result(kind, finished, tmp_path, capsys):
    """Ten times: the one before it, or this one where the damage harms nothing."""
    directory = tmp_path / "checkpoints"
    states = {saved: read_state(finished[0] / "checkpoints", saved) for saved in (4, 6)}
    moments, found = random.Random(0), []
    for trial in range(10):
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(finished[0] / "checkpoints", directory)
        # In turn anywhere, and where the arrays are.
        damage(directory / "6" / ("default/d" if kind != "halve" and trial % 2 else "."), kind, moments)
        newest, state = newest_sound(directory)
        assert_same_state(state, states[newest])
        found.append(newest)
        warned = f"warning: {directory / '6'}: " in capsys.readouterr().err
        assert warned == (newest == 4)
    assert found.count(4) >= 4
    for saved in ("4", "6"):
        damage(directory / saved, "halve", moments)
        (directory / saved / "_CHECKPOINT_METADATA").unlink(missing_ok=True)
        shutil.rmtree(directory / saved / "default", ignore_errors=True)
    with pytest.raises(UserError, match=r"no checkpoint can be read: .*/6: .*/4: "):
        newest_sound(directory)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(experiment, finished, tmp_path, capsys):
    path = tmp_path / "run"
    directory = opened(path, config_of())
    with Trainer(experiment, directory) as trainer:
        trainer.start()
        for _ in range(5):
            trainer.train_one_round()
    shutil.rmtree(path / "checkpoints/4/default/d")
    train_to_the_end(experiment, directory)
    said = capsys.readouterr()
    assert "checkpoints/4: " in said.err
    assert "resuming from round 2" in said.err
    assert "resumed after round 2" in said.out
    assert (path / "checkpoints/4.damaged").is_dir()
    assert_same_state(read_state(path / "checkpoints", 6), read_state(finished[0] / "checkpoints", 6))
    assert [row["round"] for row in RunDirectory(path).rows()] == list(range(7))


def test_a_run_whose_checkpoints_are_gone_starts_anew_and_says_so(experiment, finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    directory = RunDirectory(tmp_path / "run")
    with Trainer(experiment, directory) as trainer:
        assert trainer.start() == 0
    said = capsys.readouterr().err
    assert "checkpoints: holds no checkpoint to resume from; the run starts again from the beginning, and what" in said
    assert "what is left of its 6 rounds is deleted" in said
    assert [row["round"] for row in directory.rows()] == [0]
    assert saved_rounds(directory.snapshots) == [0]
    with Trainer(experiment, opened(tmp_path / "other", config_of())) as trainer:
        trainer.start()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_a_damaged_state_is_refused_by_name_or_read_unharmed(kind, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    damage(tmp_path / "run/checkpoints/6/default/d", kind, random.Random(0))
    with pytest.raises(UserError, match=r"checkpoints/6: (is damaged|cannot be read)"):
        load_checkpoint(tmp_path / "run")


def test_a_second_run_in_one_directory_is_refused(tmp_path):
    first = opened(tmp_path / "run", config_of())
    holder = [sys.executable, "-c", "import time; from helpers.runs import config_of, opened; "]
    holder[2] += "d = opened(__import__('sys').argv[1], config_of()); print('open', flush=True); time.sleep(60)"
    with pytest.raises(UserError, match=r"--workdir .*/run: another process is using it \(process \d+ on "):
        opened(tmp_path / "run", config_of())
    first.close()
    other = subprocess.Popen([*holder, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, cwd=TESTS)
    assert other.stdout.readline() == "open\n"
    with pytest.raises(UserError, match=f"process {other.pid} on "):
        opened(tmp_path / "run", config_of())
    other.kill()
    other.wait()
    opened(tmp_path / "run", config_of()).close()


def test_checkpoints_that_another_process_cannot_read_are_left_alone(finished, tmp_path, monkeypatch):
    directory = tmp_path / "checkpoints"
    shutil.copytree(finished[0] / "checkpoints", directory)
    monkeypatch.setattr("loft_jax.storage.checkpoints.reduce_over_processes", lambda own, combine: combine(own, -1))
    with pytest.raises(UserError, match="not every process can read what is saved there; nothing was changed"):
        newest_sound(directory)
    monkeypatch.setattr("loft_jax.storage.checkpoints.reduce_over_processes", lambda own, combine: combine(own, 4))
    assert newest_sound(directory)[0] == 4


def test_a_state_that_cannot_be_saved_stops_the_run(experiment, tmp_path, monkeypatch):
    saves = []

    def save(self, round_number, **_):
        saves.append(round_number)
        if round_number == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", save)
    with pytest.raises(RunStopped, match=r"checkpoints: round 2 could not be saved \(No space left on device\)"):
        train_to_the_end(experiment, opened(tmp_path / "run", config_of()))
    assert saves == [0, 0, 2], "of round 0 a snapshot and a checkpoint"


def test_a_run_that_is_not_finite_from_the_start_says_that_nothing_is_saved(tmp_path):
    store, directory = SimpleNamespace(wait=lambda: None), RunDirectory(tmp_path)
    experiment = SimpleNamespace(method=SimpleNamespace(step=None))
    trainer = SimpleNamespace(
        _checkpoints=store, _directory=directory, _experiment=experiment, _config=config_of(), done=0
    )
    with pytest.raises(RunStopped, match="a variable is nan after round 0; nothing is saved"):
        Trainer._stop_unless_finite(trainer, "a variable", math.nan)


def test_ends_of_writes_that_come_too_late_for_orbax_are_no_traceback(monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    _ignore_late_ends.__wrapped__()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("a bug")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert [str(unraisable.exc_value) for unraisable in told] == ["a bug"]


def test_rows_that_a_disk_has_spoiled_are_left_out(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    for number in range(3):
        directory.append({"round": number})
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'{"round": 1', b"\0" * 11))
    assert directory.rows() == [{"round": 0}, {"round": 2}]


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    opened(tmp_path / "run", config_of())
    assert "cannot be locked (Function not implemented); see that nothing else trains" in capsys.readouterr().err


def test_a_row_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    directory = opened(tmp_path / "run", config_of())
    monkeypatch.setattr(directory, "metrics", Path("/dev/full"))
    with pytest.raises(RunStopped, match=r"/dev/full: cannot be written \(No space left on device\); what was saved"):
        directory.append({"round": 1})


def test_a_disk_that_is_full_stops_the_run_and_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    """A real one, of two megabytes, in a namespace of its own."""
    alone = ["unshare", "--map-root-user", "--mount"]
    probe = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this system lets no user mount a file system")
    (tmp_path / "disk").mkdir()
    script = """mount -t tmpfs -o size=2m none "$1" && cd "$1"
        "$2" -c 'from test_survival import fill_the_disk; fill_the_disk()'"""
    arguments = ["bash", "-c", script, "bash", tmp_path / "disk", sys.executable]
    places = os.pathsep.join(map(str, (TESTS, Path(__file__).parent)))
    result = subprocess.run(
        [*alone, *arguments], capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": places}
    )
    assert result.returncode == 0, result.stderr
    assert (
        "could not be saved (No space left on device). States saved before are as they were (of rounds: 0)"
        in result.stdout
    )
    assert "sound: [0]" in result.stdout
    assert "resumed: [0, 1, 2]" in result.stdout
    assert "Traceback" not in result.stderr


def fill_the_disk():
    """Save states until the disk is full, then make room and go on; prints what there is to see."""
    state = {"variables": {"params": {"kernel": np.random.default_rng(0).normal(size=100_000).astype(np.float32)}}}
    directory = Path("checkpoints")
    store = Store(directory)
    store.save(0, state)
    store.wait()
    Path("filler").write_bytes(bytes(1_400_000))
    try:
        store.save(1, state)
        store.wait()
    except RunStopped as stop:
        print(stop)
    print("sound:", [saved for saved in saved_rounds(directory) if read_state(directory, saved)])
    Path("filler").unlink()
    store = Store(directory)
    for saved in (1, 2):
        store.save(saved, state)
    store.wait()
    print("resumed:", [saved for saved in saved_rounds(directory) if read_state(directory, saved)])


def test_a_checkpoint_that_another_process_cannot_read_is_warned_of(finished, tmp_path, monkeypatch, capsys):
    directory = tmp_path / "checkpoints"
    shutil.copytree(finished[0] / "checkpoints", directory)
    monkeypatch.setattr("loft_jax.storage.checkpoints.reduce_over_processes", lambda own, combine: combine(own, 4))
    assert newest_sound(directory)[0] == 4
    said = f"warning: {directory / '6'}: cannot be read by another process; resuming from round 4\n"
    assert capsys.readouterr().err == said
