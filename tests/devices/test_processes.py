"""One run as several processes: the same numbers as one process with as many devices, and a common end."""

import os
import random
import re
import signal
import socket

import jax
import numpy as np
import pytest
from helpers.runs import config_of
from helpers.survival import DisturbedRun
from helpers.tiny import flat

from loft_jax import load_checkpoint
from loft_jax.config.config import Config
from loft_jax.devices import mesh, processes
from loft_jax.devices.processes import Processes, check_visible, connect_processes, run_on_first
from loft_jax.errors import Preempted, RunStopped, UserError
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.storage.saved import saved_rounds


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The directory of a run like the finished one, by two processes with two devices each."""
    run = DisturbedRun(tmp_path_factory.mktemp("digits") / "two", 2, ())
    run.finish()
    return run.path


@pytest.mark.full
def test_two_processes_train_as_one_with_as_many_devices(two, finished):
    rows = [RunDirectory(path).rows() for path in (two, finished[0])]
    assert [row["round"] for row in rows[0]] == [row["round"] for row in rows[1]] == list(range(7))
    # The same batches of the same partition, before a sync and after.
    for ours, theirs in zip(*(own[1:] for own in rows), strict=True):
        assert ours.get("train/loss") == pytest.approx(
            theirs.get("train/loss"), rel=1e-6 if ours["round"] < 3 else 1e-4
        )
        assert ours["bytes_on_the_wire"] == theirs["bytes_on_the_wire"]
    # Rounding grows from step to step; eight steps in, it is three times smaller than this.
    ours, theirs = (flat(load_checkpoint(path, 4)["variables"]["params"]) for path in (two, finished[0]))
    for path in ours:
        np.testing.assert_allclose(ours[path], theirs[path], atol=1e-4, err_msg=path)


@pytest.mark.full
def test_two_processes_are_as_accurate_as_one(two, finished):
    assert abs(RunDirectory(two).summary()["test/accuracy"] - finished[1]["test/accuracy"]) <= 0.01


@pytest.mark.campaign
def test_digits_in_two_processes_are_as_accurate_as_in_one(tmp_path, monkeypatch):
    """`configs/digits.yaml`, to the end, in programs optimised as users' are: those of the tests take far longer."""
    monkeypatch.setenv("XLA_FLAGS", "")
    own = ("--model.width", 16, "--data.batch_size", 32, "--loft.local_steps", 16, "--train.rounds", 40)
    own += ("--train.eval_every", 10, "--train.norm_batches", 32)
    accuracies = []
    for count in (1, 2):
        run = DisturbedRun(tmp_path / f"as{count}", count, own)
        run.finish()
        accuracies.append(RunDirectory(run.path).summary()["test/accuracy"])
    print(f"one process {accuracies[0]:.2%}, two {accuracies[1]:.2%}")
    assert min(accuracies) >= 0.96
    assert abs(accuracies[0] - accuracies[1]) <= 0.01


@pytest.mark.campaign
@pytest.mark.parametrize("frozen", [0, 1])
def test_processes_stop_when_one_is_frozen(frozen, tmp_path):
    run = DisturbedRun(tmp_path / "run", 2, ("--train.rounds", 1000))
    start = run.start()
    run.wait_for(start, 3)
    start.processes[frozen].send_signal(signal.SIGSTOP)
    _, said = start.processes[1 - frozen].communicate(timeout=60)
    start.processes[frozen].kill()
    assert start.processes[1 - frozen].returncode != 0
    assert "aborted after another process died" in said


@pytest.mark.full
def test_processes_stop_when_one_is_killed_and_leave_together_when_one_is_preempted(tmp_path):
    """With filters that are exchanged, what each worker keeps, and snapshots off the cadence of checkpoints."""
    options = ("--train.rounds", 40, "--train.eval_every", 40, "--loft.sync", "exchange", "--loft.wire", "int8")
    options += ("--loft.shared_every", 2)
    run = DisturbedRun(tmp_path / "run", 2, (*options, "--train.snapshot_every", 3))
    (left_code, _, said), (killed_code, _, _) = run.disturb(signal.SIGKILL, 5, random.Random(0), hit=[1])
    assert killed_code == -signal.SIGKILL
    # Told by a collective it says so itself; JAX, which misses a heartbeat, and Gloo may abort it before.
    assert left_code in (1, -signal.SIGABRT)
    words = "lost the connection to another process" if left_code == 1 else "exited unexpectedly"
    assert f"error: process 0 of 2 {words}" in said
    assert said.count("error: process") == 1
    assert "Start all processes again: the run resumes from its newest checkpoint" in said
    assert "Traceback" not in said
    killed_after = saved_rounds(run.path / "checkpoints")[-1]
    (_, said, _), (_, silent, _) = run.disturb(signal.SIGTERM, killed_after + 2, random.Random(0), hit=[1])
    assert f"resumed after round {killed_after}" in said
    # Gloo's threads print into each other's lines.
    words = r"\[Gloo\]|Rank|[\d.:]+|is connected to|peer ranks|Expected number of connected peer ranks is"
    # Before it has read its settings a process does not know that it is not the first.
    words += r"|working +\d+ s$"
    assert not re.sub(words, "", silent, flags=re.MULTILINE).strip(), "only the first one prints"
    left_after = run.last_round
    # One process with all four devices resumes from what two have saved.
    assert f"resumed after round {left_after}" in DisturbedRun(run.path, 1, run.options).finish()
    assert [row["round"] for row in RunDirectory(run.path).rows()] == list(range(41))


def asked_for(**distributed):
    return Config.model_validate({"distributed": distributed})


def test_one_process_is_not_asked_for_a_rendezvous():
    with connect_processes(Config()) as alone:
        assert (alone.index, alone.count, alone.is_first) == (0, 1, True)


@pytest.mark.parametrize("number", [0, 1])
def test_only_the_first_process_prints_while_they_connect(number, monkeypatch, capsys):
    def connect(settings):
        print("connecting")
        return Processes(settings.process_id, settings.processes)

    monkeypatch.setattr(processes, "_connect", connect)
    with connect_processes(asked_for(coordinator="127.0.0.1:1", processes=2, process_id=number)):
        print("connected")
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("note ")]
    assert lines == ["connecting", "connected"] * (number == 0)


def test_processes_that_do_not_meet_say_so_in_time(tmp_path):
    run = DisturbedRun(tmp_path / "run", 2, ("--distributed.start_seconds", 1))
    (end,) = run.start(only=[1]).wait(60)
    assert end[0] == 1
    assert end[2].startswith("error: distributed.coordinator=127.0.0.1:")
    assert "process 1 of 2 could not connect to the others (waited for distributed.start_seconds=1)" in end[2]
    assert not run.path.exists()


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("", 0)) as taken:
        coordinator = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(RunStopped, match="its port: Address already in use"),
            connect_processes(asked_for(coordinator=coordinator, processes=2, process_id=0)),
        ):
            pass


def test_no_cluster_is_found_here(monkeypatch):
    def not_found(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", not_found)
    with (
        pytest.raises(UserError, match=r"distributed\.mode=auto: .* are not found \(coordinator_address should"),
        connect_processes(asked_for(mode="auto")),
    ):
        pass


@pytest.mark.parametrize(("index", "stop", "code"), [(0, UserError, 2), (1, UserError, 2), (1, RunStopped, 1)])
def test_what_the_first_process_refuses_stops_every_process(index, stop, code, monkeypatch):
    monkeypatch.setattr(processes, "reduce_over_processes", lambda value, combine: -code)

    def refuse():
        raise stop("no")

    with pytest.raises(stop if index == 0 else SystemExit) as stopped:
        run_on_first(Processes(index, 2), refuse)
    assert index == 0 or stopped.value.code == code


@pytest.mark.parametrize("answer", [False, True])
def test_the_first_processes_answer_is_everyones(answer, monkeypatch):
    assert run_on_first(Processes(), lambda: answer) is answer
    monkeypatch.setattr(processes, "reduce_over_processes", lambda value, combine: int(answer))
    assert run_on_first(Processes(1, 2), lambda: not answer) is answer


def test_processes_with_unequal_devices_are_refused():
    processes._check_devices({0: 2, 1: 2})
    with pytest.raises(UserError, match="process 0 has 2, process 1 has 4"):
        processes._check_devices({0: 2, 1: 4})


def test_processes_connect_directly_where_the_environment_has_a_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "intranet")
    monkeypatch.setenv("no_grpc_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    processes._reach_without_proxy("127.0.0.1")
    found = {name: value for name, value in os.environ.items() if name.lower().startswith("no_")}
    assert {"no_proxy": "intranet,127.0.0.1", "no_grpc_proxy": "127.0.0.1"}.items() <= found.items()
    assert "NO_PROXY" not in found


def test_a_run_directory_that_is_not_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_VISIBLE_SECONDS", 0)
    check_visible(Processes(1, 2), tmp_path)
    with pytest.raises(RunStopped, match="is not visible to process 1 of 2, but the first process has written it"):
        check_visible(Processes(1, 2), tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (UserError("no"), 2, "error: no (process 1 of 2)"),
        (RunStopped("not finite"), 1, "error: not finite (process 1 of 2)"),
        (KeyboardInterrupt(), 130, "interrupted (process 1 of 2)"),
        (jax.errors.JaxRuntimeError("UNKNOWN: closed by peer"), 1, "lost the connection to another process"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"), 1, "RESOURCE_EXHAUSTED: memory\n"),
        (jax.errors.JaxRuntimeError("INTERNAL: CUDA runtime"), 1, "INTERNAL: CUDA runtime\n"),
        (TimeoutError("barrier"), 1, "lost the connection to another process"),
        (BrokenPipeError(), 1, ""),
        (ZeroDivisionError("bug"), 1, "ZeroDivisionError: bug\n"),
        (SystemExit(2), 2, ""),
    ],
)
def test_a_process_says_why_it_leaves_and_does_not_wait_for_others(stop, code, said, monkeypatch, capsys):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    processes._end_process(Processes(1, 2), stop)
    assert left == [code]
    assert said in capsys.readouterr().err


def test_only_the_first_process_says_that_all_have_left():
    with pytest.raises(Preempted):
        processes._end_process(Processes(0, 2), Preempted("saved"))
    with pytest.raises(SystemExit) as stop:
        processes._end_process(Processes(1, 2), Preempted("saved"))
    assert stop.value.code == 0


def test_a_directory_of_another_process_is_only_read(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.writes = False
    directory.append({"round": 1})
    directory.forget_after(0)
    directory.write_summary({})
    assert not list(tmp_path.iterdir())


class FakeDevice:
    platform = "cpu"

    def __init__(self, number, process):
        self.id, self.process_index = number, process


@pytest.mark.parametrize(
    ("workers", "data", "per_process", "used"),
    [
        (4, 1, (2, 2), [0, 1, 2, 3]),
        (2, 1, (4, 4), [0, 4]),
        (4, 2, (4, 4), [0, 1, 2, 3, 4, 5, 6, 7]),
        (6, 1, (4, 4), [0, 1, 2, 4, 5, 6]),
        (1, 4, (2, 2), [0, 1, 2, 3]),
        (3, 1, (1, 1, 1), [0, 1, 2]),
    ],
)
def test_devices_are_taken_evenly_from_all_processes(workers, data, per_process, used, monkeypatch):
    owners = [process for process, count in enumerate(per_process) for _ in range(count)]
    monkeypatch.setattr(jax, "devices", lambda: [FakeDevice(*pair) for pair in enumerate(owners)])
    monkeypatch.setattr(mesh, "Mesh", lambda grid, *_, **__: grid)
    config = config_of(loft={"workers": workers}, mesh={"data": data})
    grid = mesh.make_mesh(config)
    assert [device.id for device in grid.flat] == used
    assert grid.shape == (len(used) // data, data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loft": {"workers": 3}}, "loft.workers=3: .* cannot be spread evenly over 2 processes .* try loft.workers=4"),
        ({"mesh": {"worker": 1}}, "mesh.worker=1: .* cannot be taken evenly from 2 processes; try 4"),
        ({"mesh": {"worker": 4, "data": 2}}, "mesh.worker=4: with mesh.data=2 it needs 8 devices, but only 4"),
    ],
)
def test_devices_that_cannot_be_taken_evenly_are_refused(settings, message, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [FakeDevice(i, i // 2) for i in range(4)])
    with pytest.raises(UserError, match=message):
        mesh.make_mesh(config_of(**settings))
