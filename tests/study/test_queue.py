"""A study at work: stand-ins do its jobs as processes; they fail, take too long, are killed, or share the work."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from helpers import TESTS
from helpers.studies import changed
from helpers.study_commands import use_stand_ins

from loft_jax.config import run_command
from loft_jax.storage import RunDirectory, write_object
from loft_jax.study import __main__ as command, commands, queue
from loft_jax.study.place import JobFiles

STAND_IN = TESTS / "helpers/study_commands.py"
JOBS = [f"{s}-seed0-{step}" for s in ("loft4", "sgd") for step in ("pretrain", "tickets", "at80")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current directory, and stand-ins for the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_program", commands._program)
    use_stand_ins()
    monkeypatch.setattr(queue, "SECONDS_BETWEEN_LINES", 0.05)
    return tmp_path


def write(**keys):
    """Write s.yaml: two settings, one seed, no check; and little time kept."""
    tree = changed(**{"seeds": [0], "steps__speed": None, "stop_seconds": 2, "report": {"seconds": 2}, **keys})
    with open("s.yaml", "w") as file:
        yaml.safe_dump(tree, file)


def do(*options, workdir="out"):
    """What the command says to these options: (exit code, stdout, stderr)."""
    out, said = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["study", "--config", "s.yaml", "--workdir", workdir, *options]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            run_command(command.main)
    except SystemExit as stop:
        return stop.code, out.getvalue(), said.getvalue()
    finally:
        sys.argv = argv
    return 0, out.getvalue(), said.getvalue()


def start(*options):
    """Start the command as a process of its own, in a process group of its own."""
    words = [sys.executable, STAND_IN, "study", "--config", "s.yaml", "--workdir", "out", *options]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def results(kind=None):
    with open("out/results.jsonl") as file:
        rows = [json.loads(line) for line in file]
    return [row for row in rows if kind in (None, row["kind"])]


def attempts(place, name):
    """How often a job's command was called."""
    log = place / f"out/jobs/{name}/log.txt"
    return log.read_text().count(f"$ {sys.executable} ") if log.exists() else 0


def rounds_of(setting):
    return [row["round"] for row in RunDirectory(f"out/runs/{setting}/seed0").rows()]


def test_a_study_is_done_in_order_and_what_is_done_is_skipped(place):
    write(steps__speed={"kind": "bench", "seconds": 1, "arguments": ["--pairs", "1"]}, seeds=[0, 2])
    code, out, said = do()
    assert (code, said) == (0, "")
    names = ["speed", *(name.replace("seed0", f"seed{k}") for k in (0, 2) for name in JOBS)]
    assert [line.split()[2] for line in out.splitlines() if line.startswith("job ")] == [f"{name}:" for name in names]
    assert "done      loft4-seed0-pretrain in " in out
    assert "rewind 0.8: 90.00%, random 0.8: 90.00%" in out
    assert "finished  13 jobs are done" in out
    assert [row["job"] for row in results() if "state" in row] == names
    assert len(results("start")) == 1
    assert [row["what"] for row in results("bench")[1:]] == ["a over b", "c"]
    runs = json.loads((place / "out/report/report.html").read_text())
    assert runs == [f"out/runs/{setting}/seed{seed}" for setting in ("loft4", "sgd") for seed in (0, 2)]
    again, out, _ = do()
    assert (again, "13 jobs, 0 of 13 to do" in out) == (0, True)
    assert all(attempts(place, name) == 1 for name in names)


def test_results_are_means_over_the_seeds_of_runs(place):
    write(seeds=[0, 2], settings={"loft4": {}}, steps__pretrain__seconds_of={}, retraining={"rounds": 8})
    do()
    with open("out/results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["what"], row["ratio"], row["epochs"], row["seeds"]) for row in rows] == [
        ("pretrained, unpruned", "", "1.0", "0 2"),
        ("rewind", "0.8", "2.0", "0 2"),
        ("random", "0.8", "2.0", "0 2"),
    ]
    assert float(rows[0]["test_accuracy_mean"]) == pytest.approx(0.91)
    assert float(rows[0]["test_accuracy_std"]) == pytest.approx(0.0141421, rel=1e-5)
    snapshots = [
        (row["round"], row["to_reference"], row["to_previous"]) for row in results("tickets") if "round" in row
    ]
    assert snapshots[:2] == [(0, pytest.approx(0.6), None), (4, 0.0, pytest.approx(0.3))]


def test_a_job_that_fails_loses_itself_and_what_needs_it_and_nothing_else(place, monkeypatch):
    write()
    monkeypatch.setenv("FAIL", "train --config out/settings/loft4")
    code, out, said = do()
    assert code == 1
    assert said == "error: loft4-seed0-pretrain: exit code 1: error: train was told to fail\n"
    assert (
        "failed    loft4-seed0-pretrain: exit code 1: error: train was told to fail; see out/jobs/loft4-seed0-pre"
        in out
    )
    assert "left      3 jobs" in out
    states = {row["job"]: row["state"] for row in results() if "state" in row}
    assert states == {"loft4-seed0-pretrain": "failed", **dict.fromkeys(JOBS[3:], "done")}
    assert json.loads((place / "out/report/report.html").read_text()) == ["out/runs/sgd/seed0"]
    monkeypatch.delenv("FAIL")
    code, out, said = do()
    assert (code, said) == (0, "")
    assert attempts(place, "loft4-seed0-pretrain") == 2
    assert attempts(place, "sgd-seed0-pretrain") == 1


def test_a_job_that_ends_well_without_its_results_is_not_begun_again_and_again(place, monkeypatch):
    write()
    monkeypatch.setenv("QUIT", "train --config out/settings/loft4")
    code, out, said = do()
    assert (code, said) == (0, "")
    assert "stopped   loft4-seed0-pretrain after " in out
    monkeypatch.setenv("QUIT", "tickets out/runs/loft4")
    code, out, said = do()
    assert code == 1
    assert said == "error: loft4-seed0-tickets: exit code 0: tickets begins\n"
    assert (attempts(place, "loft4-seed0-pretrain"), attempts(place, "loft4-seed0-tickets")) == (2, 1)


def test_results_without_snapshots_can_be_gone_on_with_except_for_the_tickets_of_their_runs(place):
    write(settings={"loft4": {}}, steps__pretrain__seconds_of={})
    do("--job", "loft4-seed0-pretrain", "loft4-seed0-tickets")
    shutil.rmtree(place / "out/runs/loft4/seed0/snapshots")
    code, out, said = do()
    assert code == 1
    assert "the snapshots of out/runs/loft4/seed0 are not here; delete that directory to train the run again" in said
    assert attempts(place, "loft4-seed0-at80") == 0
    shutil.rmtree(place / "out/runs/loft4/seed0")
    code, out, said = do()
    assert (code, said, "finished  3 jobs" in out) == (0, "", True)
    assert attempts(place, "loft4-seed0-pretrain") == 2


def test_a_report_that_fails_is_said(place, monkeypatch):
    write()
    monkeypatch.setenv("FAIL", "report out/")
    code, out, said = do()
    assert (code, "finished  6 jobs" in out) == (1, True)
    assert said == ("error: report: the report failed (error: report was told to fail); see out/jobs/report/log.txt\n")


def test_a_training_that_runs_out_of_time_saves_and_goes_on_at_the_next_start(place, monkeypatch):
    write(settings={"sgd": {"train": {"rounds": 40}}}, steps__pretrain={"kind": "train", "seconds": 1})
    monkeypatch.setenv("SECONDS", "0.5")
    began = time.monotonic()
    code, out, said = do("--budget", "12")
    assert time.monotonic() - began < 12
    assert (code, said) == (0, "")
    assert "stopped   sgd-seed0-pretrain after " in out
    assert "of it is done; the next start goes on" in out
    assert "report    out/report/report.html" in out
    assert "left      3 jobs" in out
    done = rounds_of("sgd")
    assert 2 < len(done) < 40
    assert results("train")[0]["state"] == "stopped"
    monkeypatch.setenv("SECONDS", "0.001")
    code, out, _ = do()
    assert (code, "finished" in out) == (0, True)
    assert rounds_of("sgd") == list(range(41))


def test_a_job_that_does_not_fit_is_left_and_a_later_one_that_does_is_done(place):
    write(steps__pretrain={"kind": "train", "seconds": 1, "seconds_of": {"sgd": 500}}, steps__at80__seconds=2)
    code, out, _ = do("--budget", "60")
    assert code == 0
    assert "left      3 jobs" in out
    assert {row["job"] for row in results() if "state" in row} == set(JOBS[:3])
    before = sorted(path.name for path in (place / "out").iterdir())
    # Nothing else fits: the whole study has begun, and not even one job can be.
    write(steps__pretrain={"kind": "train", "seconds": 1, "seconds_of": {"sgd": 50_000}}, steps__at80__seconds=2)
    code, _, said = do("--budget", "60")
    assert code == 2
    assert said.startswith("error: --budget 60: is too small for the first job, sgd-seed0-pretrain, which takes about ")
    assert sorted(path.name for path in (place / "out").iterdir()) == before


def test_a_budget_too_small_for_the_first_job_is_refused_and_nothing_is_written(place):
    write()
    code, out, said = do("--budget", "30")
    assert (code, out) == (2, "")
    assert said == (
        "error: --budget 30: is too small for the first job, loft4-seed0-pretrain, which takes about 30 s, beside 5 s "
        "that are kept for saving and the report; give at least 36, or lower steps.pretrain.seconds if it takes less\n"
    )
    write(budget=31)
    code, _, said = do("--budget", "300")
    assert code == 2
    assert said.startswith("error: s.yaml: budget=31: is too small for the first job, loft4-seed0-pretrain, which take")
    assert not (place / "out").exists()


def test_the_budget_of_a_study_is_that_of_all_starts_together(place):
    write(budget=60, steps__pretrain={"kind": "train", "seconds": 1, "seconds_of": {"sgd": 500}})
    do()
    spent = results("start")[0]["seconds"]
    assert 1 < spent < 60
    write(budget=600, steps__pretrain={"kind": "train", "seconds": 1, "seconds_of": {"sgd": 5}})
    code, out, _ = do("--task", "1/2")
    assert (code, "finished  3 jobs are done" in out) == (0, True)
    assert len(results("start")) == 2
    spent = sum(row["seconds"] for row in results("start"))
    write(budget=spent + 40, steps__pretrain={"kind": "train", "seconds": 1, "seconds_of": {"sgd": 5}})
    _, out, _ = do()
    assert "6 jobs, 0 of 6 to do; 40 s to spend" in out
    spent = round(sum(row["seconds"] for row in results("start")))
    write(budget=spent + 10, settings={"new": {}}, steps__pretrain={"kind": "train", "seconds": 10**7})
    code, _, said = do("--budget", "1000")
    assert code == 2
    assert said.startswith(f"error: s.yaml: budget={spent + 10}, of which ")
    assert " s are spent: is too small for the first job, new-seed0-pretrain, which takes about " in said


def test_a_job_that_passes_its_limit_has_failed(place):
    (place / "test_slow.py").write_text("import time\ndef test_quick(): pass\ndef test_slow(): time.sleep(60)\n")
    step = {"kind": "test", "seconds": 1, "limit": 6, "paths": ["test_slow.py"], "marker": "not gpu"}
    write(steps={"card": step}, settings=None)
    code, _, said = do()
    assert code == 1
    assert "card: stopped after its limit of 6 s" in said


def test_tests_are_counted_and_those_that_fail_are_named(place):
    code = "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
    (place / "test_card.py").write_text(code)
    write(steps={"card": {"kind": "test", "seconds": 1, "paths": ["test_card.py"], "marker": "not gpu"}}, settings=None)
    code, out, _ = do()
    assert code == 1
    assert "failed    card: exit code 1" in out
    (row,) = [row for row in results("test") if "passed" in row]
    assert (row["passed"], row["skipped"], row["failed"], row["names_failed"]) == (1, 1, 1, ["test_card.test_b"])
    (place / "test_card.py").write_text("def test_a(): pass\n")
    code, out, _ = do()
    assert (code, "1 tests passed, 0 skipped, 0 failed" in out) == (0, True)


def test_sigterm_lets_the_training_save_and_ends_with_0(place, monkeypatch):
    write(common={"train": {"rounds": 4000}})
    process = start()
    wait_for(lambda: len(rounds_of("loft4")) > 3)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
    assert "stopped   by SIGTERM, 6 jobs left; run the same command again to resume" in out
    assert "stopped   by SIGTERM" in (place / "out/jobs/loft4-seed0-pretrain/log.txt").read_text()
    assert not (place / "out/report").exists()


def test_a_killed_study_takes_its_job_with_it_and_goes_on(place):
    write(common={"train": {"rounds": 60}}, settings={"loft4": {}}, steps__pretrain__seconds_of={})
    process = start()
    wait_for(lambda: len(rounds_of("loft4")) > 3)
    process.kill()
    process.communicate(timeout=30)
    done = wait_until_still(lambda: rounds_of("loft4"))
    assert len(done) < 60, "its training has ended too"
    before = JobFiles(place / "out/jobs/loft4-seed0-pretrain").seconds
    assert before > 0
    code, _, said = do()
    assert (code, said) == (0, "")
    assert rounds_of("loft4") == list(range(61))
    (first, second) = results("start")
    assert first["seconds"] > 0 < second["seconds"]
    (row,) = [row for row in results("train") if "state" in row]
    assert row["seconds"] > before + 0.02 * (60 - len(done)), "the time before the kill counts"


def wait_until_still(value, seconds=1.5):
    """The value, once it has not changed for so long."""
    before, since = value(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.05)
        if value() != before:
            before, since = value(), time.monotonic()
    return before


def test_several_processes_share_the_work_and_no_job_is_done_twice(place):
    write(seeds=[0, 1, 2], common={"train": {"rounds": 20}})
    processes = [start(*options) for options in ((), (), ("--task", "1/2"))]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    code, out, _ = do()
    assert (code, "finished  18 jobs are done" in out) == (0, True)
    names = [path.name for path in (place / "out/jobs").iterdir() if path.name != "report"]
    assert len(names) == 18
    assert {name: attempts(place, name) for name in names} == dict.fromkeys(names, 1)
    assert len({row["job"] for row in results() if row.get("state") == "done"}) == 18
    assert len(results("start")) == 4


def test_a_job_done_before_there_was_a_field_had_its_default(place):
    write()
    do("--job", "loft4-seed0-pretrain")
    path = place / "out/jobs/loft4-seed0-pretrain/result.json"
    result = json.loads(path.read_text())
    del result["identity"]["loft.wire"]
    write_object(path, result)
    assert do("--job", "loft4-seed0-pretrain")[::2] == (0, "")


def test_a_job_done_with_other_settings_is_refused(place):
    write()
    do("--job", "loft4-seed0-pretrain")
    write(common={"train": {"rounds": 6}})
    code, out, said = do()
    assert (code, out) == (2, "")
    assert said == (
        "error: --workdir out: the job loft4-seed0-pretrain was done with other settings (model.width: 4 there, null "
        "now; train.rounds: 4 there, 6 now); use another directory, or another name for the setting or step\n"
    )


def test_times_may_change_and_jobs_may_be_added(place):
    write(settings={"loft4": {}}, steps__pretrain__seconds_of={})
    do()
    write(steps__at80__seconds=3, stop_seconds=1, steps__at50={"kind": "retrain", "seconds": 1, "ratios": [0.5]})
    code, out, _ = do()
    assert (code, "8 jobs, 5 of 8 to do" in out) == (0, True)


def test_the_length_of_retrainings_is_chosen_once(place):
    retraining = {"rounds": 1000, "least_rounds": 10}
    step = {"kind": "retrain", "ratios": [0.8], "seconds": 1000, "start_seconds": 0}
    write(retraining=retraining, steps__at80=step, steps__pretrain={"kind": "train", "seconds": 1})
    code, out, _ = do("--budget", "60")
    assert code == 0
    length = int(out.split("length    ")[1].split()[0])
    assert 10 < length < 1000
    assert f"length    {length} of 1000 rounds for every retraining, by the time that is left" in out
    logs = [(place / f"out/jobs/{s}-seed0-at80/log.txt").read_text() for s in ("loft4",)]
    assert all(f"--train.rounds {length}\n" in log for log in logs)
    do()
    assert f"--train.rounds {length}\n" in (place / "out/jobs/sgd-seed0-at80/log.txt").read_text()
    assert {row["epochs"] for row in results("retrain") if "epochs" in row} == {length / 4}


def test_the_length_of_retrainings_is_that_for_the_budget_of_all_starts(place):
    step = {"kind": "retrain", "ratios": [0.8], "seconds": 10**5, "start_seconds": 0}
    lengths = []
    for name, budget in {"one": None, "all": 400}.items():
        write(
            budget=budget,
            retraining={"rounds": 10**6, "least_rounds": 1},
            steps__at80=step,
            steps__pretrain={"kind": "train", "seconds": 1},
            settings={"loft4": {}},
        )
        _, out, _ = do("--budget", "60", "--job", "loft4-seed0-pretrain", "loft4-seed0-tickets", workdir=name)
        # Long retrainings do not end in this start, and their length is chosen all the same, if one may begin.
        write(
            budget=budget,
            retraining={"rounds": 10**6, "least_rounds": 1},
            steps__at80={**step, "least_seconds": 1},
            steps__pretrain={"kind": "train", "seconds": 1},
            settings={"loft4": {}},
        )
        _, out, _ = do("--budget", "9", workdir=name)
        lengths.append(int(out.split("length    ")[1].split()[0]))
    assert lengths[1] > 10 * lengths[0]


def test_settings_of_retrainings_are_options_of_their_command(place):
    write(retraining={"settings": {"optimizer": {"learning_rate": 0.05}}}, steps__at80__seeds=[3, 4])
    do("--job", "loft4-seed0-pretrain", "loft4-seed0-tickets", "loft4-seed0-at80")
    log = (place / "out/jobs/loft4-seed0-at80/log.txt").read_text()
    assert "--ticket r4-group-l2-0.8 --mode rewind random --seeds 3 4 --optimizer.learning_rate=0.05\n" in log
    with open("out/results.csv") as file:
        assert [row["seeds"] for row in csv.DictReader(file)][1:] == ["0.3 0.4"] * 2


def test_jobs_are_listed_with_their_states(place):
    write()
    _, out, _ = do("--list")
    assert not (place / "out").exists()
    assert "left      6 of 6 jobs, about 2 min 20 s" in out
    do("--job", "loft4-seed0-pretrain")
    _, out, _ = do("--list")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "seed0" in line]
    states = {name: state for name, _, state, *_ in cells}
    assert states["loft4-seed0-pretrain"] == "done"
    assert (states["loft4-seed0-tickets"], states["loft4-seed0-at80"]) == ("open", "waits")
    assert {row[4] for row in cells} == {"0", "1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--job", "loft4-seed0-pretrian"], "--job loft4-seed0-pretrian: no such job; did you mean loft4-seed0-pretra"),
        (["--job", "x"], "--job x: no such job; --list shows all"),
        (
            ["--job", "loft4-seed0-at80"],
            "--job loft4-seed0-at80: needs loft4-seed0-pretrain, which is not done; add it",
        ),
        (["--job", "loft4-seed0-pretrain", "--task", "0/2"], "--job and --task both choose jobs; give one of them"),
        (["--task", "2/2"], "argument --task: 2/2: must be K/N, with K from 0 to N - 1; try 0/4"),
        (["--task", "1"], "argument --task: 1: must be K/N"),
        (["--budget", "0"], "argument --budget: 0: must be a whole number of at least 1"),
        (["--data.batch_size", "0"], "command line: data.batch_size='0': must be greater than or equal to 1"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(place, options, message):
    write()
    code, out, said = do(*options)
    assert (code, out) == (2, "")
    assert message in said
    assert not (place / "out").exists()


def test_a_directory_that_holds_something_else_is_refused(place):
    write()
    (place / "other").mkdir()
    (place / "other/x").touch()
    code, _, said = do(workdir="other")
    assert (code, said) == (2, "error: --workdir other: is not empty and holds no study; use another\n")


def test_a_directory_that_another_process_has_just_begun_is_the_studys(place):
    write(settings={"loft4": {}}, steps__pretrain__seconds_of={})
    (place / "out/jobs").mkdir(parents=True)
    (place / "out/.study.yaml.17.tmp").touch()
    assert do("--job", "loft4-seed0-pretrain")[0] == 0


def test_tests_that_are_not_there_are_refused(place):
    write(steps={"card": {"kind": "test", "seconds": 1}}, settings=None)
    code, _, said = do()
    assert code == 2
    assert said.startswith("error: s.yaml: steps.card.paths: tests/gpu: no such file or folder; run the study in a ")


def test_a_start_says_on_which_machine_it_was(place, monkeypatch):
    (place / "bin").mkdir()
    (place / "bin/nvidia-smi").write_text('#!/bin/sh\necho "NVIDIA H200, 580.1, 143771 MiB"\n')
    (place / "bin/nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    write()
    do("--job", "loft4-seed0-pretrain")
    (row,) = results("start")
    assert row["cards"] == ["NVIDIA H200, 580.1, 143771 MiB"]
    assert row["versions"].keys() >= {"jax", "numpy"}
