"""What receives the metrics, and events as TensorBoard reads them."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import TESTS
from helpers.refused import AcceptedError, refusal
from helpers.runs import config_of
from helpers.tracked import open_with, row, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import RecordWriter

from loft_jax.errors import RunStopped, UserError
from loft_jax.storage import trackers
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.storage.trackers import EVENTS, check_installed


def scalars(directory):
    """Tag -> [(step, value)], as TensorBoard reads them."""
    accumulator = EventAccumulator(str(directory.path), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def expected(directory, key):
    return [(row["round"], pytest.approx(row[key])) for row in directory.rows() if key in row]


def test_every_metric_is_an_event_of_its_round(tmp_path):
    directory = open_with(tmp_path / "run")
    train(directory, 0, 50)
    found = scalars(directory)
    assert found.keys() == row(0).keys() - {"round"}
    for key in found:
        assert found[key] == expected(directory, key)


def test_training_writes_events(finished):
    directory = RunDirectory(finished[0])
    assert scalars(directory)["train/loss"] == expected(directory, "train/loss")


def test_a_resumed_run_has_each_round_once(tmp_path):
    train(open_with(tmp_path / "run"), 0, 12)
    directory = open_with(tmp_path / "run")
    directory.forget_after(8)
    directory.append({"round": 9, "step": 144, "epoch": 4.5, "train/loss": 0.25})
    assert len(list(directory.path.glob(EVENTS))) == 1
    assert scalars(directory)["train/loss"] == expected(directory, "train/loss")
    assert scalars(directory)["train/loss"][-1] == (9, 0.25)
    directory.close()
    # The first row that is appended starts the events, where nothing else has.
    directory = open_with(tmp_path / "run")
    directory.append(row(10))
    assert [step for step, _ in scalars(directory)["epoch"]] == list(range(11))


def test_events_of_rows_that_were_kept_lie_as_far_apart_as_the_rounds_took(tmp_path):
    directory = open_with(tmp_path / "run")
    train(directory, 0, 12)
    directory.forget_after(8)
    accumulator = EventAccumulator(str(directory.path))
    accumulator.Reload()
    times = [event.wall_time for event in accumulator.Scalars("epoch")]
    assert [b - a for a, b in pairwise(times)] == pytest.approx([1.2] * 8, abs=1e-3)


def test_a_killed_process_loses_nothing(tmp_path):
    code = "import os; from helpers.tracked import open_with, train; train(open_with('run'), 0, 5); os.abort()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False).returncode < 0
    directory = RunDirectory(tmp_path / "run")
    assert len(directory.rows()) == 6
    assert scalars(directory)["epoch"] == expected(directory, "epoch")


def test_an_event_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    directory = open_with(tmp_path / "run")
    train(directory, 0, 1)
    directory._trackers[0]._writer = RecordWriter("/dev/full")
    with pytest.raises(RunStopped, match=r"tfevents.*: cannot be written \(No space left on device\)"):
        directory.append(row(2))
    assert [r["round"] for r in directory.rows()] == [0, 1, 2]
    directory.close()
    # The file that is being made is there, and its disk is full.
    monkeypatch.setattr("tensorboardX.RecordWriter", lambda path: Path(path).touch() or RecordWriter("/dev/full"))
    with pytest.raises(RunStopped, match=r"tfevents.*: cannot be written \(No space left on device\)"):
        directory.forget_after(2)
    assert len(list(directory.path.glob("*events.out*"))) == 1, "that of before, and nothing unfinished"


def test_without_trackers_there_is_metrics_jsonl_alone(tmp_path):
    directory = open_with(tmp_path / "run", "none")
    train(directory, 0, 2)
    assert {path.name for path in directory.path.iterdir() if path.name[0] != "."} == {"config.yaml", "metrics.jsonl"}


def test_a_process_that_does_not_write_starts_no_tracker(tmp_path, monkeypatch):
    directory = open_with(tmp_path / "run")
    directory.writes = False
    train(directory, 0, 2)
    assert not list(directory.path.glob(EVENTS))


def test_a_tracker_that_is_not_installed_is_refused_before_jax_is_loaded(place, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    arguments = ("train", "--workdir", "tracked", "--train.trackers")
    said = refusal(*arguments, "wandb")
    assert said.startswith("train.trackers=wandb: wandb needs the library wandb, which is not installed; pip install ")
    assert said.endswith("'loft_jax[wandb]', or leave wandb out (none: metrics.jsonl alone)")
    said = refusal(*arguments, "tensorboard")
    assert said.startswith("train.trackers=tensorboard: tensorboard needs the library tensorboardX, which is not ")
    with pytest.raises(AcceptedError):
        refusal(*arguments, "none")


def test_a_directory_that_is_called_like_a_library_is_none(tmp_path, monkeypatch):
    (tmp_path / "made_by_a_service").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers._LIBRARIES, "wandb", ("made_by_a_service", "pip install it"))
    with pytest.raises(UserError, match="needs the library made_by_a_service, which is not installed; pip install it"):
        check_installed(config_of(train={"trackers": "wandb"}).train)


def test_no_library_is_imported_before_it_is_used():
    code = "import sys, loft_jax.storage.run_directory as d; d.RunDirectory('x')\n"
    code += "print(*{'jax', 'numpy', 'filelock', 'tensorboardX', 'wandb', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


class Recorder:
    """A tracker that records what it is told."""

    def __init__(self, told):
        self.start = lambda rows: told.append([row["round"] for row in rows])
        self.append = lambda row: told.append(row["round"])
        self.close = lambda finished: told.append(f"finished={finished}")


def test_trackers_are_closed_with_the_directory_or_without_it(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("loft_jax.storage.run_directory.create_trackers", lambda *_: [Recorder(told)])
    directory = open_with(tmp_path / "run")
    train(directory, 0, 1)
    directory.close()
    directory.close()
    assert told == [[], 0, 1, "finished=False"]
    told.clear()
    directory = open_with(tmp_path / "run")
    train(directory, 1, 1)
    (directory.path / "summary.json").write_text("{}")
    del directory  # as at the end of a process
    assert told == [[0], 1, "finished=True"]


def test_one_tracker_that_cannot_be_closed_leaves_the_others_and_the_lock_to_be(tmp_path, monkeypatch):
    told, failing = [], Recorder([])
    failing.close = lambda finished: 1 / 0
    monkeypatch.setattr("loft_jax.storage.run_directory.create_trackers", lambda *_: [Recorder(told), failing])
    directory = open_with(tmp_path / "run")
    train(directory, 0, 0)
    with pytest.raises(ZeroDivisionError):
        directory.close()
    assert told[-1] == "finished=False"
    open_with(tmp_path / "run")


def test_old_events_that_cannot_be_removed_stop_the_run_with_a_message(tmp_path, monkeypatch):
    trackers.TensorBoardEvents(tmp_path, config_of()).start([])
    remove = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name.startswith("events.out"):
            raise PermissionError(13, "Permission denied")
        remove(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunStopped, match=r"cannot be written \(Permission denied\)"):
        trackers.TensorBoardEvents(tmp_path, config_of()).start([])
