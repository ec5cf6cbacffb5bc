"""Weights & Biases and MLflow: stood in for, and themselves without a server where they are installed."""

import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import TESTS
from helpers.tracked import open_with, row, train

from loft_jax.errors import UserError


@pytest.fixture
def installed(monkeypatch):
    """Every library counts as installed."""
    monkeypatch.setattr("loft_jax.storage.trackers.find_spec", lambda name: SimpleNamespace(origin="here"))


class FakeWandb:
    """W&B online: it knows the rows of each run, and where a resumed one continues; its service can be broken."""

    def __init__(self, directory):
        self.runs, self.closed, self.asked, self.broken = {}, [], None, False
        self.dir = str(directory / "wandb/run-x/files")

    def init(self, **asked):
        self.asked = asked
        rows = self.runs.setdefault(asked["id"], [])

        def log(scalars, step, commit):
            if self.broken:
                raise BrokenPipeError("the service has stopped")
            rows.append((step, scalars["train/loss"]))

        step = rows[-1][0] + 1 if rows else 0
        return SimpleNamespace(
            step=step, offline=False, dir=self.dir, log=log, finish=lambda exit_code: self.closed.append(exit_code)
        )


def test_a_resumed_run_of_wandb_is_the_same_and_has_each_round_once(tmp_path, monkeypatch, installed):
    fake = FakeWandb(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    directory = open_with(tmp_path / "run", "wandb")
    train(directory, 0, 5)
    directory._close_trackers.detach()  # as SIGKILL does
    directory._close_trackers = None
    directory.close()
    directory = open_with(tmp_path / "run", "wandb")
    train(directory, 3, 8)
    directory.write_summary({})
    directory.close()
    (rows,) = fake.runs.values()
    assert rows == [(number, row(number)["train/loss"]) for number in range(9)]
    assert fake.closed == [0]
    assert fake.asked["resume"] == "allow"
    assert fake.asked["config"]["train"]["trackers"] == "wandb"
    (name,) = fake.runs
    kept = json.loads((tmp_path / "run/wandb.json").read_text())
    assert kept == {"id": name, "round": 8, "open": None, "checksum": kept["checksum"]}
    # Another run is another one there.
    train(open_with(tmp_path / "other", "wandb"), 0, 1)
    assert len(fake.runs) == 2


def test_an_error_of_wandb_in_the_middle_of_a_run_is_warned_of_once(tmp_path, monkeypatch, installed, capsys):
    fake = FakeWandb(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    directory = open_with(tmp_path / "run", "wandb")
    train(directory, 0, 1)
    fake.broken = True
    directory.append(row(2))
    directory.append(row(3))
    assert capsys.readouterr().err == (
        "warning: train.trackers=wandb: some rounds are not logged yet, and are sent again with later ones "
        "(BrokenPipeError: the service has stopped)\n"
    )
    fake.broken = False
    directory.append(row(4))
    directory.close()
    (rows,) = fake.runs.values()
    assert [number for number, _ in rows] == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


class FakeMlflow:
    """MLflow's client and entities, with a server that can be away."""

    def __init__(self):
        self.runs, self.away, self.tries = {}, False, 0
        self.entities = SimpleNamespace(
            Metric=lambda *metric: metric, Param=lambda *param: param, RunTag=lambda *tag: tag
        )
        self.MlflowClient = lambda: self
        self.experiments = {}

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = SimpleNamespace(experiment_id=name)

    def create_run(self, experiment, run_name):
        assert experiment == "loft_jax"
        self.runs["a"] = SimpleNamespace(rows=[], tags={}, params={}, status="RUNNING", name=run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="a"))

    def update_run(self, run_id, status):
        self.runs[run_id].status = status

    set_terminated = update_run

    def get_run(self, run_id):
        return SimpleNamespace(data=self.runs[run_id])

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        self.tries += 1
        if self.away:
            raise ConnectionError("no route to host")
        self.runs[run_id].rows += [(step, value) for key, value, _, step in metrics if key == "train/loss"]
        self.runs[run_id].tags |= dict(tags)
        self.runs[run_id].params |= dict(params)


@pytest.fixture
def mlflow_stand_in(monkeypatch, installed):
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
    return fake


def test_a_resumed_run_of_mlflow_is_the_same_and_has_each_round_once(tmp_path, mlflow_stand_in):
    directory = open_with(tmp_path / "run", "mlflow")
    train(directory, 0, 5)
    directory.close()
    (run,) = mlflow_stand_in.runs.values()
    assert run.status == "KILLED"
    directory = open_with(tmp_path / "run", "mlflow")
    train(directory, 3, 8)
    assert run.status == "RUNNING"
    directory.write_summary({})
    directory.close()
    assert run.status == "FINISHED"
    assert run.rows == [(number, row(number)["train/loss"]) for number in range(9)]
    assert run.params["loft.workers"] == "4"


def test_a_server_of_mlflow_that_is_away_is_warned_of_and_gets_the_rows_later(tmp_path, mlflow_stand_in, capsys):
    directory = open_with(tmp_path / "run", "mlflow")
    train(directory, 0, 1)
    mlflow_stand_in.away = True
    directory.append(row(2))
    said = capsys.readouterr().err
    assert said.startswith("warning: train.trackers=mlflow: some rounds are not logged yet")
    assert "(ConnectionError: no route to host)" in said
    tracker = directory._trackers[0]
    tracker._try_at += 3600  # it took long to find out
    tries = mlflow_stand_in.tries
    directory.append(row(3))
    assert mlflow_stand_in.tries == tries, "training does not wait for it again at once"
    mlflow_stand_in.away, tracker._try_at = False, 0.0
    directory.append(row(4))
    assert [number for number, _ in mlflow_stand_in.runs["a"].rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_does_not_start_is_refused(name, tmp_path, monkeypatch, installed):
    def refuse(**_):
        raise ConnectionError("api_key not configured\nand more")

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=refuse, MlflowClient=refuse))
    directory = open_with(tmp_path / "run", name)
    with pytest.raises(UserError) as refused:
        train(directory, 0, 1)
    said = str(refused.value)
    assert said.startswith(f"train.trackers={name}: {name} did not start (ConnectionError: api_key not configured); ")
    assert said.endswith(f", or leave {name} out")
    directory.close()


SPOILT = ["", "{", "[1]", '{"id": 5}', '{"id": null}', '{"id": ""}', '{"id": "a/../b", "round": 0}']
SPOILT += ['{"id": "a", "round": 3, "open": null, "checksum": 1}', "[" * 10_000, "directory"]


@pytest.mark.parametrize("content", SPOILT, ids=range(len(SPOILT)))
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_file_that_names_no_run_of_a_service_is_refused(name, content, tmp_path, installed):
    directory = open_with(tmp_path / "run", name)
    file = directory.path / f"{name}.json"
    file.mkdir() if content == "directory" else file.write_text(content)
    said = rf"run/{name}.json: .*, so it does not name the {name} run to resume; delete the file"
    with pytest.raises(UserError, match=said):
        train(directory, 0, 1)


def wandb_parts(path):
    """What W&B has written offline in each part of a run: (its id, its steps, its times, its exit code)."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(path.glob("wandb/offline-run-*/*.wandb")):
        content, at, record, records = file.read_bytes(), 7, b"", []
        while at + 7 <= len(content):
            # Blocks of 32 KiB, of records of a checksum, a length, a kind (1: whole, 4: last part) and their bytes.
            if (left := -at % 2**15) and left < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", content[at : at + 7])
            record += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                records.append(Record.FromString(record))
                record = b""
        history = [
            {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in r.history.item}
            for r in records
            if r.WhichOneof("record_type") == "history"
        ]
        ids = [r.run.run_id for r in records if r.WhichOneof("record_type") == "run"]
        codes = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
        yield ids[0], [h["_step"] for h in history], [h["_timestamp"] for h in history], codes


def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    places = os.pathsep.join([str(TESTS), *sys.path])
    environment = os.environ | {"PYTHONPATH": places, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}

    def in_a_process(first, last, then):
        code = "import os; from helpers.tracked import open_with, train; d = open_with('run', 'wandb'); "
        code += f"train(d, {first}, {last}); {then}"
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False).returncode

    assert in_a_process(0, 3, "pass") == 0, "closed at the end of the process"
    assert in_a_process(3, 6, "os.kill(os.getpid(), 9)") == -9
    assert in_a_process(7, 8, "d.write_summary({}); d.close()") == 0
    (one, steps, _, codes), (same, later_steps, times, later_codes) = wandb_parts(tmp_path / "run")
    assert one == same
    assert steps + later_steps == list(range(9)), "what the killed process may have lost stands there once"
    assert (codes, later_codes) == ([1], [0])
    assert np.diff(times)[:2] == pytest.approx([1.2, 1.2], abs=1e-3), "as long as rounds 5 and 6 took"


@pytest.mark.parametrize("uri", ["sqlite:///{}/mlflow.db", "file:{}/mlruns"])
def test_mlflow_without_a_server(uri, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri.format(tmp_path))
    try:
        for first, last in ((0, 5), (3, 8)):
            directory = open_with(tmp_path / "run", "mlflow")
            train(directory, first, last)
            directory.close()
        directory.write_summary({})
        client = mlflow.MlflowClient()
        run = client.get_run(json.loads((tmp_path / "run/mlflow.json").read_text())["id"])
        history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss"))
        assert history == [(number, pytest.approx(row(number)["train/loss"])) for number in range(9)]
        assert run.data.params["loft.workers"] == "4"
        assert run.info.status == "KILLED"
        assert run.info.run_name.endswith("/run")
        assert len(client.search_runs([run.info.experiment_id])) == 1
    finally:
        mlflow.set_tracking_uri(before)
