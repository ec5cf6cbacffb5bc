"""The table of a run's retrainings."""

import json
import re
import shutil

import pytest
from helpers.fake_runs import fake_retraining, fake_run, fake_summary, read
from helpers.runs import TICKET

from loft_jax.filters import Rules
from loft_jax.retrain.results import collect_results, print_results, write_results
from loft_jax.storage.records import write_object
from loft_jax.storage.run_directory import RunDirectory


def test_results_are_mean_and_sample_deviation_over_seeds(run, capsys):
    facts = fake_summary() | {"ticket": TICKET, "mode": "rewind", "rewind_to": 0, "ticket_round": 6}
    facts |= {"ratio": 0.5, "scope": "group"}
    facts |= {"rounds": 6, "settings": "0123456789ab"}
    costs = {"parameters": 1, "flops_per_image": 2.0, "steps_images_per_second": 3.0}
    costs |= {f"{key}_unpruned": 2 * value for key, value in costs.items()}
    for seed, accuracy in ((0, 0.90), (1, 0.92), (10, 0.97)):
        directory = run / "retrain" / TICKET / f"rewind/seed{seed}"
        directory.mkdir(parents=True)
        summary = {**facts, **costs, "norm": "l2", "seed": seed, "test/accuracy": accuracy, "test/loss": 0.1}
        RunDirectory(directory).write_summary(summary)
    (row,) = write_results(RunDirectory(run))
    assert row["seeds"] == "0 1 10"
    assert row["test_accuracy_mean"] == pytest.approx(0.93)
    assert row["test_accuracy_std"] == pytest.approx(0.0360555, rel=1e-5)
    assert row["test_accuracies"] == "0.9 0.92 0.97"
    print_results(RunDirectory(run), [row, {**row, "settings": "ba9876543210"}])
    said = capsys.readouterr().out
    assert "93.00% ± 3.61" in said
    assert "trained with different settings" in said
    assert f"unpruned  {RunDirectory(run).summary()['test/accuracy']:.2%}: the run itself, after its 6 rounds" in said


def test_the_best_round_stands_beside_the_last_and_says_what_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.9, 0.8])
    (row,) = write_results(directory)
    assert row["test_accuracy_best_mean"] is None, "these do not record it"
    for seed, best in enumerate((0.95, 0.85)):
        path = directory.retrain / f"r12-group-l2-0.5/rewind/seed{seed}/summary.json"
        write_object(path, json.loads(path.read_text()) | {"test/accuracy_best": best})
    (row,) = write_results(directory)
    assert (row["test_accuracy_mean"], row["test_accuracy_best_mean"]) == (pytest.approx(0.85), pytest.approx(0.9))
    print_results(directory, [row])
    said = capsys.readouterr().out
    assert "85.00%" in said
    assert "90.00%" in said
    assert "best round: mean over seeds; chosen by test images, and so too high" in said


def test_results_are_in_order_and_their_loss_is_the_mean_over_seeds(tmp_path):
    directory = fake_run(tmp_path / "run")
    for ticket_round, ratio in ((12, 0.5), (4, 0.5), (0, 0.8), (4, 0.3)):
        fake_retraining(directory, ratio, [0.9, 0.8], ticket_round=ticket_round)
    path = directory.retrain / "r4-group-l2-0.3/rewind/seed1/summary.json"
    write_object(path, json.loads(path.read_text()) | {"test/loss": 0.3})
    rows = read(directory).retrained
    assert [(row["ratio"], row["ticket_round"]) for row in rows] == [(0.3, 4), (0.5, 4), (0.5, 12), (0.8, 0)]
    assert rows[0]["test_loss_mean"] == pytest.approx(0.2)


def test_costs_are_said_as_shares_of_the_unpruned_networks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.9])
    print_results(directory, read(directory).retrained)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "r12-group-l2-0.5" in line]
    assert re.findall(r"\d\.\d\d(?!%)(?= )", line)[-3:] == ["0.50"] * 3


def test_the_rules_of_tickets_are_said_once_under_the_table(tmp_path, capsys):
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.9])
    rules = Rules((("stage1/*", 0.3),), ("head", "stem"), at_least=4, round_to=8, score_batches=16)
    print_results(directory, write_results(directory), [Rules(), rules, Rules(round_to=8), rules])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rules")]
    assert said == [
        f"rules     {rules.name}: stage1/* loses 0.3; head stays whole; stem stays whole; at least 4 stay; multiples "
        "of 8; scored on 16 batches",
        "rules     by8: multiples of 8",
    ]


def test_a_later_round_rewound_to_is_said_beside_the_mode(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.9])
    (row,) = write_results(directory)
    print_results(directory, [{**row, "rewind_to": 4}])
    assert "rewind to 4" in capsys.readouterr().out


@pytest.mark.parametrize("copy", ["seed0.bak", "seed00", "seed2"])
def test_a_copied_seed_does_not_count_a_second_time(copy, tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.9, 0.8])
    before = collect_results(directory).rows
    mode = directory.retrain / "r12-group-l2-0.5/rewind"
    shutil.copytree(mode / "seed0", mode / copy)
    after = collect_results(directory)
    assert after.rows == before
    assert copy in after.left_out[0]
