"""A run's directory: rows behind a spoilt one, what a crash leaves, damaged checkpoints put aside."""

import os
import platform

import pytest
from helpers.fake_runs import fake_summary
from helpers.runs import config_of, opened

from loft_jax.errors import RunStopped, UserError
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.storage.saved import saved_instead


def test_rows_behind_a_spoilt_one_stay_and_what_is_left_out_is_said(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    directory.append({"round": 1})
    with open(directory.metrics, "ab") as file:
        file.write(b'\xff{"round": 2\n{"round": 3}\n\n{"round": 4')
    assert directory.rows() == [{"round": 1}, {"round": 3}]
    (said,) = directory.lost_rows()
    assert said.startswith(f"{directory.metrics}: line 2: is no JSON")
    before = directory.metrics.read_bytes()
    directory.forget_after(3)
    assert directory.rows() == [{"round": 1}, {"round": 3}]
    assert directory.metrics.with_name("metrics.jsonl.damaged").read_bytes() == before


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path):
    opened(tmp_path / "run", config_of()).close()
    names = ("config.yaml", "metrics.jsonl", "summary.json", "events.out.tfevents.1.loft_jax")
    left = [tmp_path / f"run/.{name}.123.tmp" for name in names]
    for path in left:
        path.touch()
    opened(tmp_path / "run", config_of()).close()
    assert [path.name for path in left if path.exists()] == []


def test_the_config_of_a_runs_data_has_the_seed_that_split_them(tmp_path):
    run, retrained = tmp_path / "run", tmp_path / "run/retrain/r6/rewind/seed2"
    for path, seed in ((run, 5), (retrained, 2)):
        opened(path, config_of().model_copy(update={"seed": seed})).close()
    (retrained / "ticket.json").touch()
    assert RunDirectory(run).data_config().seed == 5
    assert RunDirectory(retrained).data_config().seed == 5
    assert RunDirectory(retrained).read_config().seed == 2
    assert RunDirectory(tmp_path / "elsewhere").data_config() is None
    moved = retrained.rename(tmp_path / "seed2")
    assert RunDirectory(moved).data_config() is None, "nobody can know which images its run was tested on"


def test_a_directory_is_claimed_until_it_is_closed_or_forgotten(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    directory.open(config_of())  # it may be opened twice
    holder = rf"process {os.getpid()} on {platform.node()}"
    with pytest.raises(UserError, match=rf"another process is using it \({holder}\); wait for it, stop it, or use "):
        opened(tmp_path / "run", config_of())
    lock = directory._lock
    directory.close()
    assert not lock.is_locked
    directory = opened(tmp_path / "run", config_of())
    del directory
    opened(tmp_path / "run", config_of()).close()


def test_the_holder_of_a_directory_may_be_unknown(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    (directory.path / ".lock.owner").unlink()
    with pytest.raises(UserError, match=r"another process is using it \(its name is not known yet\)"):
        opened(tmp_path / "run", config_of())


def test_a_start_that_failed_leaves_nothing_that_counts_as_a_run(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    assert {path.name for path in directory.path.iterdir()} == {"config.yaml", ".lock", ".lock.owner"}
    assert not RunDirectory(tmp_path / "run").started


IDENTITY = {"name": "mine", "image_shape": [4, 5, 3], "training_images": 6, "fingerprint": "0badcafe"}


def test_a_run_is_trained_on_the_data_that_it_was_begun_with(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    assert directory.data_identity() is None
    directory.agree_on_data(IDENTITY | {"fingerprint": "of a start that failed"})
    directory.agree_on_data(IDENTITY)
    directory.append({"round": 0})
    directory.agree_on_data(IDENTITY)
    assert directory.data_identity() == IDENTITY
    with pytest.raises(UserError, match=r"was trained on other data \(fingerprint: 0badcafe there, 1 now\); use that"):
        directory.agree_on_data(IDENTITY | {"fingerprint": "1"})
    directory.agree_on_data({"name": "mine"})
    (directory.path / "data.json").write_text("{")
    directory.agree_on_data(IDENTITY)
    assert directory.data_identity() == IDENTITY


def test_a_directory_without_locks_may_be_opened_and_is_warned_of_once(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    directory = opened(tmp_path / "run", config_of())
    directory.open(config_of())
    said = "cannot be locked (Operation not supported); see that nothing else trains there"
    assert capsys.readouterr().err.count(said) == 1
    directory.close()


def test_a_lock_that_cannot_be_written_stops_the_run(tmp_path):
    (tmp_path / "run/.lock").mkdir(parents=True)
    (tmp_path / "run/.lock.owner").mkdir()
    with pytest.raises(RunStopped, match=r"run/\.lock.*: cannot be written \(Is a directory\)"):
        opened(tmp_path / "run", config_of())


def test_a_checkpoint_that_is_damaged_again_takes_the_place_of_the_one_before(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    for name, content in (("4", "new"), ("4.damaged", "old")):
        (directory.checkpoints / name).mkdir(parents=True)
        (directory.checkpoints / name / "file").write_text(content)
    directory.forget_after(2)
    assert [path.name for path in directory.checkpoints.iterdir()] == ["4.damaged"]
    assert (directory.checkpoints / "4.damaged/file").read_text() == "new"


def test_a_damaged_checkpoint_that_cannot_be_renamed_stops_the_run(tmp_path, monkeypatch):
    directory = opened(tmp_path / "run", config_of())
    (directory.checkpoints / "4").mkdir(parents=True)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(RunStopped, match=r"checkpoints/4\.damaged: cannot be written \(Permission denied\)"):
        directory.forget_after(2)


def test_of_many_saved_rounds_the_first_and_last_are_named():
    assert saved_instead(range(3), 7) == "try 2; there are 0, 1, 2"
    assert saved_instead(range(0, 84, 4), 7) == "try 8; there are 21 from 0 to 80"


def test_a_setting_that_was_changed_in_the_config_of_a_run_is_refused(tmp_path):
    directory = opened(tmp_path / "run", config_of())
    path = directory.path / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("eval_every: 3", "eval_every: 2"))
    assert directory.read_config().train.eval_every == 2, "which changes no result"
    path.write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match=r"config\.yaml: was changed: its settings are \w+, and the run was made with"):
        directory.read_config()
    path.write_text(text.partition("\n")[2])
    assert directory.read_config() == config_of(), "as earlier versions wrote it"


def test_a_summary_of_another_run_is_none_of_this(tmp_path):
    directory, other = opened(tmp_path / "run", config_of()), opened(tmp_path / "other", config_of(loft={"workers": 2}))
    for each in (directory, other):
        config = each.read_config()
        each.write_summary(fake_summary() | {"config_hash": config.hash()})
    assert directory.summary()
    (other.path / "summary.json").replace(directory.path / "summary.json")
    assert directory.summary() is None
    assert "summary.json: is that of another run (config_hash: " in directory.summary_problem()


def test_rows_of_a_retraining_are_not_those_of_another_with_the_same_settings(tmp_path):
    for name in ("one", "two"):
        directory = RunDirectory(tmp_path / name)
        directory.open(config_of(), name)
        directory.append({"round": 1})
    (tmp_path / "one/metrics.jsonl").replace(tmp_path / "two/metrics.jsonl")
    assert RunDirectory(tmp_path / "two").rows() == []
    assert "or is of another run" in RunDirectory(tmp_path / "two").lost_rows()[0]


def test_a_retraining_has_no_snapshots_and_says_what_it_is(tmp_path):
    path = tmp_path / "run/retrain/r6-group-l2-0.5/rewind/seed0"
    path.mkdir(parents=True)
    (path / "ticket.json").write_text("{}")
    with pytest.raises(UserError, match=rf"is the retraining of a ticket, .* give the run .*, {tmp_path}/run$"):
        RunDirectory(path).snapshot_rounds()


def test_a_home_in_a_name_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(RunDirectory("~/run").path) == "/somewhere/run"
