"""Ctrl-C always acts, and a run saves the round it is in; a second one leaves at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, TESTS
from helpers.runs import SETTINGS, settings_with

from loft_jax.signals import Preemption

PROGRAM = """
import ctypes, signal, sys, time
from loft_jax import signals
from loft_jax.config import run_command
signals._GRACE_SECONDS = 0.3

def swallows():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass

def compiles():
    # The thread that listens gets the signal, so that it does not end the call.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    print("ready", flush=True)
    ctypes.CDLL(None).sleep(60)

def saves():
    with signals.Preemption() as preemption, preemption.saving():
        print("ready", flush=True)
        while not preemption.requested:
            ctypes.CDLL(None).usleep(100_000)
        raise preemption.stopped(" after a round")

def one_round():
    with signals.Preemption() as preemption, preemption.saving():
        compiles()

run_command(globals()[sys.argv[1]], interrupted="interrupted; resume")
"""


def started(case, *before):
    # Ignored where these tests run in the background of a shell.
    process = subprocess.Popen(
        [*before, sys.executable, "-c", PROGRAM, case], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process, seconds=10):
    out, said = process.communicate(timeout=seconds)
    return process.returncode, out.replace("ready\n", ""), said


@pytest.mark.parametrize("case", ["swallows", "compiles"])
def test_ctrl_c_that_python_does_not_hear_of_ends_the_command_with_one_line(case):
    process = started(case)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "interrupted; resume\n")


def test_ctrl_c_lets_a_round_be_saved():
    process = started("saves")
    process.send_signal(signal.SIGINT)
    code, out, said = ended(process)
    assert (code, out) == (130, "stopped   by Ctrl-C after a round; run the same command again to resume\n")
    assert said == "note      Ctrl-C: saves what it is at, then stops; a second Ctrl-C leaves at once\n"


def test_a_second_ctrl_c_leaves_at_once_whatever_the_command_is_at():
    process = started("one_round")
    for _ in range(2):
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    assert ended(process) == (130, "", "interrupted; resume\n")
    assert time.monotonic() - begin < 5


def test_a_closed_terminal_is_a_request_to_stop_and_nohup_ignores_it():
    process = started("saves")
    process.send_signal(signal.SIGHUP)
    assert ended(process) == (0, "stopped   by SIGHUP after a round; run the same command again to resume\n", "")
    process = started("saves", "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert "by SIGTERM" in ended(process)[1]


def test_handlers_are_as_before_behind_the_block():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Preemption() as preemption, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert preemption.requested
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def interrupt_often(directory: Path, times: int) -> None:
    """Ctrl-C at random moments of starts of one run: each ends it, and no round that was written is lost."""
    settings = settings_with(
        model={"name": f"{TESTS}/helpers/own_networks.py:Plain", "width": None},
        train=SETTINGS["train"] | {"rounds": 10**5, "trackers": "none", "eval_every": 1000, "snapshot_every": 10**5},
        mesh={"cpu_devices": 1},
    )
    (directory / "c.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "loft_jax.train", "--config", str(directory / "c.yaml"), "--workdir", "run"]
    moments, saved = random.Random(0), 0
    metrics = directory / "run/metrics.jsonl"
    for trial in range(times):
        size = metrics.stat().st_size if metrics.exists() else 0
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        if trial % 2:
            time.sleep(moments.uniform(0.2, 15))
        else:
            deadline = time.monotonic() + 90
            while not (metrics.exists() and metrics.stat().st_size > size) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 1))
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        code, out, said = ended(process, seconds=60)
        assert code in (130, -signal.SIGINT), (code, out, said)
        rows = [json.loads(line)["round"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
        assert rows == list(range(len(rows)))
        if "stopped   by Ctrl-C after round" in out:
            assert f"after round {rows[-1]} of" in out
            assert (directory / f"run/checkpoints/{rows[-1]}").is_dir()
            saved += 1
    assert saved


@pytest.mark.full
def test_ctrl_c_at_random_moments_acts_each_time(tmp_path):
    interrupt_often(tmp_path, times=4)


@pytest.mark.campaign
def test_ctrl_c_acts_a_hundred_times_of_a_hundred(tmp_path):
    interrupt_often(tmp_path, times=100)
