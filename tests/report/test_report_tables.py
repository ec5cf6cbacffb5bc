"""What reports say in numbers, on literal values."""

import json

import numpy as np
import pytest
from helpers.fake_runs import complete_run, fake_retraining, fake_run, fake_search, read

from loft_jax.paper import PAPER_ROWS
from loft_jax.report.comparison import group_comparable_runs
from loft_jax.report.curves import accuracy_by_cost, seconds_a_round, settling_of, stage_distances
from loft_jax.report.parts import parts_of
from loft_jax.report.tables import messages, overview_table, own_table, paper_table, settling_table


@pytest.mark.parametrize(
    ("y", "settled"),
    [
        ([10, 5, 2, 1, 0.9, 0], 3),  # within 1 of 0 from x = 3 on
        ([10, 0.5, 3, 0.5, 0, 0], 3),  # came near, left again
        ([0, 0, 0, 0, 0, 10], "between 4 and 5"),  # it ends there, whatever it did
        ([10, 0, 0, 0, 0, 0], 1),
        ([0, 9, 9.5, 11, 10.5, 10], 1),
        ([5, 6, 7, 6, 7, 5], None),  # ends where it began
        ([10, 0, np.nan, np.nan, np.nan, np.nan], None),
        ([np.nan, 10, np.nan, 5, 0, 0], "between 3 and 4"),  # a quarter of the curve
    ],
)
def test_a_curve_has_settled_where_it_stays_within_a_tenth_of_its_way_around_its_end(y, settled):
    found = settling_of(range(6), y)
    assert str(found) == str(settled)


def test_a_curve_of_few_points_does_not_say_when_it_settled_but_between_which():
    few = settling_of([0, 3, 6, 9], [10, 5, 0, 0])
    assert (str(few), few.at) == ("between 3 and 6", None)
    many = settling_of([0, 2, 3, 4, 9], [10, 10, 5, 0, 0])
    assert (str(many), many.at) == ("4", 4)
    assert many.order(settling_of([0, 1, 2, 9], [10, 0, 0, 0])) == "after"
    assert settling_of([0, 1, 2, 9], [10, 0, 0, 0]).order(few) == "before"
    assert many.order(few) is None


def test_a_stages_distance_is_the_mean_of_its_groups(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_search(directory)
    search = read(directory).search
    stages = stage_distances(search)
    assert list(stages) == ["stage1", "stage2", "stage3", "mean"]
    blocks = [search.distances[f"stage2/block{i}"] for i in (1, 2, 3)]
    np.testing.assert_allclose(stages["stage2"], np.mean(blocks, axis=0))
    np.testing.assert_allclose(stages["mean"], np.mean([stages[f"stage{i}"] for i in (1, 2, 3)], axis=0))
    assert stages["mean"][-1] == 0 < stages["mean"][0]
    (row,) = settling_table(group_comparable_runs([read(directory)])[0])
    assert row["distance"] == pytest.approx(4)  # the scores have arrived at round 8 of 12, at two rounds an epoch
    assert row["distance of the initialisation"] == round(stages["mean"][0], 2)


def test_a_search_without_epochs_has_no_place_where_it_settles(tmp_path):
    assert settling_of([np.nan] * 6, [10, 5, 2, 1, 0.9, 0]) is None
    assert settling_of([np.nan, 1, 2, 3, 4, 5, 6], [99, 10, 0, 0, 0, 0, 0]).at == 2


def test_tickets_of_other_scopes_norms_and_like_ratios_are_not_mixed(tmp_path):
    cifar = {"model": {"name": "preresnet34"}, "data": {"name": "cifar10"}}
    directory = fake_run(tmp_path / "run", **cifar)
    fake_retraining(directory, 0.5, [0.90], scope="global", norm="l1")
    for ratio, accuracy in {0.5: 0.1222, 0.12: 0.30, 0.125: 0.70, 0.995: 0.4}.items():
        fake_retraining(directory, ratio, [accuracy])
    run = read(directory)
    (row,) = own_table(group_comparable_runs([run])[0])
    assert list(row) == [
        *("method", "no-prune", "99.5% removed", "80% removed", "50% removed", "50% removed (global, l1)"),
        *("30% removed", "12.5% removed", "12% removed", "GB moved", "improvement", "run"),
    ]
    assert (row["50% removed"], row["50% removed (global, l1)"]) == ("12.22", "90.00")
    assert (row["12% removed"], row["12.5% removed"]) == ("30.00", "70.00")
    (ours,) = paper_table([run])
    assert ours["50% removed, ours"] == "12.22"
    said = messages(group_comparable_runs([run])[0])
    assert sum("with 50% of the filters" in line for line in said) == 1
    assert any("with 50% (global, l1) of the filters removed the ticket reaches 90.00 %" in line for line in said)


def test_a_run_on_a_data_set_from_a_file_belongs_to_the_data_set_that_the_file_names(tmp_path):
    directory = fake_run(
        tmp_path / "run", model={"name": "preresnet34"}, data={"name": "arrays", "data_dir": "/data/cifar10.npz"}
    )
    assert group_comparable_runs([read(directory)])[0].title == "preresnet34 on arrays"
    directory.agree_on_data({"name": "cifar10"})
    (comparison,) = group_comparable_runs([read(directory)])
    assert comparison.title == "preresnet34 on cifar10"
    assert [row["setting"] for row in paper_table(comparison.runs)] == ["PreResNet-34 CIFAR-10"]


def test_retrainings_are_shown_with_their_epochs(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.90, 0.92])
    fake_retraining(directory, 0.5, [0.80], mode="random")
    (part,) = parts_of([read(directory)], [], tmp_path)
    (table,) = [table for table in part.tables if table.name == "retrainings"]
    assert [row["epochs retrained"] for row in table.rows] == [6.0, 6.0]
    (picture,) = [picture for picture in part.pictures if picture.name == "run1_controls"]
    assert "after retraining, for 6.0 epochs, the last ticket" in picture.caption


def test_costs_add_up_to_each_evaluation(tmp_path):
    run = read(fake_run(tmp_path / "run"))
    rows = accuracy_by_cost(run)
    assert [row["images"] for row in rows] == [r * 4 * 16 * 32 for r in (0, 4, 8, 12)]
    assert [row["bytes"] for row in rows] == [r * 1e6 for r in (0, 4, 8, 12)]
    assert [row["seconds"] for row in rows] == pytest.approx([0, 4, 8, 12])
    assert seconds_a_round(run) == pytest.approx({"train": 0.9, "sync": 0.1, "evaluation": 0.2})


def test_runs_of_another_model_or_data_set_are_compared_separately_and_names_differ(tmp_path):
    runs = [
        read(fake_run(tmp_path / path, **options))
        for path, options in [
            ("a/x", {}),
            ("b/x", {"seed": 1}),
            ("c", {"loft": {"workers": 1}, "model": {"width": 16}}),  # which is the published one
            ("d", {"model": {"width": 8}}),
            ("e", {"data": {"name": "cifar10"}}),
            ("f", {"loft": {"partition": "none"}}),
            ("g", {"loft": {"sync": "exchange"}}),
            ("h", {"gpipe": {"stages": 2}, "loft": {"workers": 1}}),
            ("i", {"loft": {"workers": 1, "momentum": "reset"}}),
        ]
    ]
    comparisons = group_comparable_runs(runs)
    assert [comparison.title for comparison in comparisons] == [
        "preresnet20 on digits",
        "preresnet20 (width 8) on digits",
        "preresnet20 on cifar10",
    ]
    assert comparisons[0].names == [
        *("LoFT-4 (x)", "LoFT-4 (x) #2", "plain SGD", "local SGD-4", "LoFT-4, exchange", "GPipe-2"),
        "plain SGD, momentum reset",
    ]


def test_the_papers_table_has_what_was_published_beside_what_was_run(tmp_path):
    cifar = {"model": {"name": "preresnet34"}, "data": {"name": "cifar10"}}
    directory = fake_run(tmp_path / "run", **cifar)
    for ratio, accuracies in {0.8: [0.93, 0.95], 0.5: [0.94], 0.0: [0.9351]}.items():
        fake_retraining(directory, ratio, accuracies)
    (ours,) = paper_table([read(directory), read(fake_run(tmp_path / "other"))])
    assert (ours["setting"], ours["method"]) == ("PreResNet-34 CIFAR-10", "LoFT-4")
    assert ours["80% removed, published"] == 93.89
    assert ours["80% removed, ours"] == "94.00 ± 1.41"
    assert ours["50% removed, ours"] == "94.00"
    assert ours["no-prune, ours"] == "93.51"
    assert (ours["GB moved, published"], ours["GB moved, ours"]) == (144.27, 0.012)
    assert ours["improvement, published"] == 3.2
    assert ours["run"] == "finished"
    assert paper_table([]) == []


def test_the_published_improvements_follow_from_the_published_bytes_but_for_the_one_that_does_not():
    for name, row in PAPER_ROWS.items():
        for method, improvement in row.improvements.items():
            gpipe = row.published[method.replace("LoFT", "GPipe")]
            follows = abs(gpipe / row.published[method] - improvement) < 0.01
            assert follows != ((name, method) == ("PreResNet-18 ImageNet", "LoFT-2"))


def test_improvement_is_against_gpipe_with_as_many_stages(tmp_path):
    loft = fake_run(tmp_path / "loft", loft={"workers": 2})
    gpipe = fake_run(tmp_path / "gpipe", gpipe={"stages": 2}, loft={"workers": 1}, rounds=24)
    other = fake_run(tmp_path / "four")
    rows = own_table(group_comparable_runs(map(read, (loft, gpipe, other)))[0])
    assert [row["improvement"] for row in rows] == ["2.00x", None, None]


def test_the_messages_name_what_settles_first_and_what_a_ticket_is_worth(tmp_path):
    said = messages(group_comparable_runs([read(complete_run(tmp_path / "run"))])[0])
    settled = "the filter distance from the run's own last snapshot settles at epoch 4, after the loss at epoch 3"
    assert said[0] == f"LoFT-4: {settled}"
    ticket = "LoFT-4: with 80% of the filters removed the ticket reaches 94.00 ± 1.41 %"
    assert said[1] == f"{ticket}, random filters 90.50 ± 0.71 %"


def test_a_ticket_rewound_to_a_later_round_is_not_the_papers(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.9], ticket_round=4)
    fake_retraining(directory, 0.5, [0.7], mode="rewind-r4")
    path = directory.retrain / "r12-group-l2-0.5/rewind-r4/seed0/summary.json"
    path.write_text(path.read_text().replace('"mode": "rewind-r4", "rewind_to": 0', '"mode": "rewind", "rewind_to": 4'))
    (row,) = own_table(group_comparable_runs([read(directory)])[0])
    assert row["50% removed"] == "90.00"


def test_the_overview_says_what_each_run_is_and_where_it_stands(tmp_path):
    runs = [read(fake_run(tmp_path / "a")), read(fake_run(tmp_path / "b", finished=False, loft={"workers": 2}, seed=3))]
    (tmp_path / "b/data.json").write_text(
        json.dumps({"name": "digits", "classes": 3, "class_names": ["cat", "cow", "dog"]})
    )
    first, second = overview_table(group_comparable_runs(runs)[0])
    expected = {
        **{
            "run": "LoFT-2",
            "directory": str(tmp_path / "b"),
            "classes": "3: cat, cow, dog",
            "state": "unfinished",
            "rounds": 6,
            "epochs": 3.0,
        },
        **{
            "test accuracy, %": 83.98,
            "best round, %": 83.98,
            "train loss": 0.2026,
            "images": 6 * 2 * 16 * 32,
            "GB moved": 0.006,
        },
        **{"seconds": 7.2, "seed": 3, "config": runs[1].config.hash()},
    }
    assert second == expected
    assert first["classes"] is None
    for names, said in ((list(map(str, range(12))), "12: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."), (None, "12")):
        (tmp_path / "a/data.json").write_text(json.dumps({"name": "digits", "classes": 12, "class_names": names}))
        assert overview_table(group_comparable_runs(runs)[0])[0]["classes"] == said
    assert (first["state"], first["images"], first["seconds"]) == ("finished", 12 * 4 * 16 * 32, 14.4)


def test_a_run_of_imagenet_is_in_the_papers_table(tmp_path):
    imagenet = {"model": {"name": "preresnet18", "stem": "imagenet"}, "data": {"name": "imagenet2012"}}
    run = read(fake_run(tmp_path / "run", loft={"workers": 2}, **imagenet))
    cifar_stem = {**imagenet, "model": {"name": "preresnet18"}}
    other = read(fake_run(tmp_path / "other", rounds=24, loft={"workers": 2}, **cifar_stem))
    (row,) = paper_table([other, run])
    assert [row[f"{ratio} removed, published"] for ratio in ("80%", "50%", "30%")] == [65.41, 69.12, 69.64]
    assert row["improvement, published"] == 21.6
    assert (row["setting"], row["method"], row["GB moved, ours"]) == ("PreResNet-18 ImageNet", "LoFT-2", 0.012)


def test_a_long_directory_is_shortened_in_a_runs_name(tmp_path):
    runs = [read(fake_run(tmp_path / name)) for name in ("a" * 12 + "middle" + "z" * 12, "b" * 24)]
    assert group_comparable_runs(runs)[0].names == [f"LoFT-4 ({'a' * 12}…{'z' * 12})", f"LoFT-4 ({'b' * 24})"]


def test_the_unpruned_network_is_no_ticket_in_the_messages(tmp_path):
    said = messages(group_comparable_runs([read(complete_run(tmp_path / "run"))])[0])
    assert [line.split(" of the filters")[0] for line in said[1:]] == ["LoFT-4: with 80%", "LoFT-4: with 50%"]


def test_snapshots_too_far_apart_are_said_instead_of_an_epoch(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_search(directory, snapshots=3)
    (comparison,) = group_comparable_runs([read(directory)])
    (row,) = settling_table(comparison)
    assert (row["distance from"], row["distance"], row["loss"]) == ("the run's own last snapshot", "between 3 and 6", 3)
    assert messages(comparison)[0].endswith(
        "settles between epochs 3 and 6 (too far apart to say when), after the loss at epoch 3"
    )


def test_two_curves_that_settle_between_the_same_measurements_are_not_ordered(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_search(directory, snapshots=4)
    (said,) = messages(group_comparable_runs([read(directory)])[0])
    assert said.endswith("and the loss at epoch 3; they are too close to each other to say which is first")
