"""What a run lives through: signals, damaged checkpoints, a full disk, and a second run in its directory."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import assert_same_state, config_of, opened, train_rounds
from survival import DisturbedRun, campaign, damage

from loft_jax import load_checkpoint
from loft_jax.checkpoint import newest_sound, read_state
from loft_jax.errors import Preempted, RunStopped, UserError
from loft_jax.preemption import Preemption
from loft_jax.run_directory import RunDirectory, saved_rounds
from loft_jax.train import run

# Orbax leaves a reader's event loop closed under it when a file cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DAMAGE = ("truncate", "flip", "halve")


def assert_survives(path, processes, kills, terminations, rounds):
    options = ("--train.rounds", rounds, "--train.checkpoint_every", 3, "--train.eval_every", rounds)
    options += ("--train.snapshot_every", rounds)
    undisturbed = DisturbedRun(path / "undisturbed", processes, options)
    undisturbed.finish()
    disturbed = DisturbedRun(path / "disturbed", processes, options)
    signals, moments = campaign(kills, terminations, rounds)
    for signal_number, round_number in signals:
        disturbed.disturb(signal_number, round_number, moments)
    disturbed.finish()
    states = [read_state(r.path / "checkpoints", rounds) for r in (disturbed, undisturbed)]
    assert_same_state(*states)
    assert [row["round"] for row in RunDirectory(disturbed.path).rows()] == list(range(rounds + 1))


def test_a_killed_and_preempted_run_ends_bit_equal_to_an_undisturbed_one(tmp_path):
    assert_survives(tmp_path, processes=1, kills=1, terminations=1, rounds=30)


@pytest.mark.campaign
@pytest.mark.parametrize("processes", [1, 2])
def test_the_campaign_of_twenty_kills_and_twenty_preemptions(processes, tmp_path):
    assert_survives(tmp_path, processes, kills=20, terminations=20, rounds=1000)


def test_a_preempted_run_saves_its_round_and_goes_on_from_it(finished, tmp_path):
    preemption = Preemption()
    preemption.requested = True
    with pytest.raises(Preempted, match="after round 0 of 6"):
        run(config_of(), opened(tmp_path / "run", config_of()), preemption)
    assert saved_rounds(tmp_path / "run/checkpoints") == [0]
    run(config_of(), opened(tmp_path / "run", config_of()), Preemption())
    assert_same_state(read_state(tmp_path / "run/checkpoints", 6), read_state(finished[0] / "checkpoints", 6))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_never_a_wrong_result(kind, finished, tmp_path, capsys):
    """Ten times: the one before it, this one where the damage harms nothing, or a refusal that names it."""
    directory = tmp_path / "checkpoints"
    states = {saved: read_state(finished[0] / "checkpoints", saved) for saved in (4, 6)}
    moments, found = random.Random(0), []
    for _ in range(10):
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(finished[0] / "checkpoints", directory)
        damage(directory / "6", kind, moments)
        newest, state = newest_sound(directory)
        assert_same_state(state, states[newest])
        found.append(newest)
        warned = f"warning: {directory / '6'}: " in capsys.readouterr().err
        assert warned == (newest == 4)
    assert found.count(4) >= 5
    for saved in ("4", "6"):
        damage(directory / saved, "halve", moments)
        (directory / saved / "_CHECKPOINT_METADATA").unlink(missing_ok=True)
        shutil.rmtree(directory / saved / "default", ignore_errors=True)
    with pytest.raises(UserError, match=r"no checkpoint can be read: .*/6: .*/4: "):
        newest_sound(directory)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished, tmp_path, capsys):
    train_rounds(tmp_path / "run", config_of(), 5)
    damage(tmp_path / "run/checkpoints/4", "halve", random.Random(0))
    run(config_of(), opened(tmp_path / "run", config_of()))
    said = capsys.readouterr()
    assert "checkpoints/4: " in said.err
    assert "going on from round 2" in said.err
    assert "resumed after round 2" in said.out
    assert_same_state(read_state(tmp_path / "run/checkpoints", 6), read_state(finished[0] / "checkpoints", 6))
    assert [row["round"] for row in RunDirectory(tmp_path / "run").rows()] == list(range(7))


@pytest.mark.parametrize("kind", ["flip", "truncate"])
def test_a_damaged_state_is_refused_by_name_or_read_unharmed(kind, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    damage(tmp_path / "run/checkpoints/6/default/d", kind, random.Random(0))
    with pytest.raises(UserError, match=r"checkpoints/6: (is damaged|cannot be read)"):
        load_checkpoint(tmp_path / "run")


def test_a_second_run_in_one_directory_is_refused(tmp_path):
    first = opened(tmp_path / "run", config_of())
    holder = [sys.executable, "-c", "import time; from runs import config_of, opened; "]
    holder[2] += "d = opened(__import__('sys').argv[1], config_of()); print('open', flush=True); time.sleep(60)"
    with pytest.raises(UserError, match=r"--workdir .*/run: another process is at work there \(process \d+ on "):
        opened(tmp_path / "run", config_of())
    first.close()
    other = subprocess.Popen(
        [*holder, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    assert other.stdout.readline() == "open\n"
    with pytest.raises(UserError, match=f"process {other.pid} on "):
        opened(tmp_path / "run", config_of())
    other.kill()
    other.wait()
    opened(tmp_path / "run", config_of()).close()


FULL_DISK = """
set -e
mount -t tmpfs -o size={size} none "$1"
cd "$1"
"{python}" -m loft_jax.train --config "$2" --workdir run 2>error && code=0 || code=$?
echo "code $code"
cat error
ls run/checkpoints
cp -r run/checkpoints "$3"
rm filler 2>/dev/null || true
"""


def may_mount():
    return not subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode


def test_what_cannot_be_written_stops_the_run_and_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    directory = opened(tmp_path / "run", config_of())
    monkeypatch.setattr(directory, "_metrics", Path("/dev/full"))
    with pytest.raises(RunStopped, match=r"/dev/full: cannot be written \(No space left on device\)"):
        directory.append({"round": 1})
