"""levels.csv, and what follows from it: of directories that were written by hand."""

import json
import shutil

import pytest
from helpers.fake_runs import fake_levels

from loft_jax.lottery.results import claims, collect_levels, curves, print_levels, write_levels


def test_the_early_step_is_the_first_with_the_least_validation_loss(tmp_path):
    fake_levels(tmp_path, {"ticket": [[0.8, 0.9]]}, losses=[1.0, 0.5, 0.25, 0.25, 0.75])
    (row, _), unfinished = collect_levels(tmp_path)
    assert unfinished == 0
    assert (row["early_step"], row["end_step"]) == (20, 40)
    assert (row["early_test_accuracy"], row["end_test_accuracy"]) == (0.8, 0.7)


def test_curves_are_means_over_seeds_and_the_ticket_comes_first(tmp_path):
    fake_levels(tmp_path, {"reinit": [[None, 0.5], [None, 0.7]], "ticket": [[0.8, 0.9], [0.6, 0.7]]})
    ticket, reinit = curves(write_levels(tmp_path))
    assert (ticket.control, reinit.control) == ("ticket", "reinit")
    assert [(point.level, point.share_left, point.seeds) for point in ticket.points] == [
        (0, 1.0, (0, 1)),
        (1, pytest.approx(0.8), (0, 1)),
    ]
    assert ticket.points[0].early == (pytest.approx(0.7), pytest.approx(0.02**0.5))
    assert reinit.points[0].early == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert [point.level for point in reinit.points] == [1]


def test_one_seed_has_no_deviation_and_an_unfinished_training_is_counted(tmp_path, capsys):
    fake_levels(tmp_path, {"ticket": [[0.8, 0.9, 0.7]]})
    (tmp_path / "seed0/level2/ticket/summary.json").unlink()
    rows, unfinished = collect_levels(tmp_path)
    assert unfinished == 1
    assert [point.early[1] for point in curves(rows)[0].points] == [None, None]
    print_levels(rows)
    said = capsys.readouterr().out
    assert "90.00" in said
    assert "±" not in said.split("┡")[1]


@pytest.mark.parametrize(
    ("ticket", "control", "whole", "ahead"),
    [
        ([0.8, 0.9, 0.8], [None, 0.7, 0.7], "at 2 of 2 levels, down to 64.00%", "at 2 of 2 levels, down to 64.00%"),
        ([0.8, 0.9, 0.7], [None, 0.7, 0.8], "at 1 of 2 levels, down to 80.00%", "at 1 of 2 levels, down to 80.00%"),
        ([0.8, 0.7, 0.9], [None, 0.7, 0.8], "at 1 of 2 levels, down to 64.00%", "at 2 of 2 levels, down to 64.00%"),
        ([0.8, 0.7, 0.6], [None, 0.8, None], "at none of 2 levels", "at none of 1 levels"),
    ],
)
def test_the_result_says_at_which_levels_the_ticket_is_ahead(ticket, control, whole, ahead, tmp_path):
    fake_levels(tmp_path, {"ticket": [ticket], "random": [control]})
    said, names = claims(write_levels(tmp_path)), ("the whole network", "random")
    for sentence, name, where in zip(said, names, (whole, ahead), strict=True):
        assert sentence.startswith(f"ticket: at least as accurate as {name} {where}")
        assert "; its early step is sooner at none of " in sentence


def test_an_early_step_that_is_sooner_is_said(tmp_path):
    fake_levels(tmp_path, {"ticket": [[0.8]]}, losses=[1.0, 0.9, 0.8, 0.7])
    fake_levels(tmp_path, {"ticket": [[None, 0.8]]}, losses=[1.0, 0.9, 0.6, 0.7])
    (sentence,) = claims(write_levels(tmp_path))
    assert sentence.endswith("; its early step is sooner at 1 of 1 levels, down to 80.00% of the weights")


def test_a_damaged_summary_is_unfinished(tmp_path):
    fake_levels(tmp_path, {"ticket": [[0.8, 0.9]]})
    path = tmp_path / "seed0/level1/ticket/summary.json"
    summary = json.loads(path.read_text())
    for damaged in ("{", json.dumps({key: value for key, value in summary.items() if key != "weights_left"})):
        path.write_text(damaged)
        assert collect_levels(tmp_path)[1] == 1


def test_a_copied_seed_does_not_count_a_second_time(tmp_path):
    fake_levels(tmp_path, {"ticket": [[0.8, 0.9], [0.6, 0.7]]})
    rows, _ = collect_levels(tmp_path)
    shutil.copytree(tmp_path / "seed0", tmp_path / "seed0.bak")
    assert collect_levels(tmp_path) == (rows, 0)
    shutil.copytree(tmp_path / "seed0", tmp_path / "seed2")
    assert collect_levels(tmp_path) == (rows, 2), "its summaries are of another seed"
