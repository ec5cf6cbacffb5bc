"""The figure of what settings send and how accurate they are."""

import pytest
from helpers.fake_runs import fake_run, read

from loft_jax.report.comparison import group_comparable_runs
from loft_jax.report.pareto import accuracy_by_setting, front, settings_of
from loft_jax.storage.records import write_object


def run(path, seed, accuracy, sent, *, finished=True, **loft):
    directory = fake_run(path, 4, seed=seed, finished=finished, loft=loft)
    rows = [row | ({"bytes_on_the_wire": sent} if row["round"] else {}) for row in directory.rows()]
    directory.metrics.unlink()
    for row in rows:
        directory.append(row)
    if finished:
        write_object(directory.path / "summary.json", directory.summary() | {"test/accuracy": accuracy})
    return read(directory)


@pytest.fixture
def runs(tmp_path):
    small = {"sync": "exchange", "wire": "int8"}
    return [
        run(tmp_path / "all/seed0", 0, 0.90, 100),
        run(tmp_path / "all/seed1", 1, 0.92, 100),
        run(tmp_path / "small/seed0", 0, 0.91, 10, **small),
        run(tmp_path / "small/seed1", 1, 0.90, 10, **small),
        run(tmp_path / "small/seed1.bak", 1, 0.10, 10, **small),
        run(tmp_path / "rare/seed0", 0, 0.80, 5, shared_every=2, **small),
        run(tmp_path / "wasteful/seed0", 0, 0.85, 50, sync="exchange"),
        run(tmp_path / "unfinished/seed0", 0, 0.99, 1, finished=False, partition="all"),
        run(tmp_path / "plain/seed0", 0, 0.95, 0, workers=1),
    ]


def test_a_setting_is_its_finished_runs_and_a_seed_counts_once(runs):
    (comparison,) = group_comparable_runs(runs)
    found = {setting.name: setting for setting in settings_of(comparison)}
    assert {name: (setting.sent, len(setting.accuracies)) for name, setting in found.items()} == {
        "LoFT-4": (400, 2),
        "LoFT-4, exchange, int8": (40, 2),
        "LoFT-4, exchange, int8, shared every 2": (20, 1),
        "LoFT-4, exchange": (200, 1),
        "plain SGD": (0, 1),
    }
    assert found["LoFT-4"].accuracy == pytest.approx(0.91)
    assert found["LoFT-4"].deviation == pytest.approx(0.02 / 2**0.5)
    assert found["plain SGD"].deviation is None


def test_the_front_has_the_settings_that_no_other_beats(runs):
    settings = [s for s in settings_of(group_comparable_runs(runs)[0]) if s.sent]
    assert [setting.sent for setting in front(settings)] == [20, 40, 400]


def test_the_figure_says_accuracy_and_bytes_of_every_setting(runs):
    chart = accuracy_by_setting("x", group_comparable_runs(runs)[0])
    said = [text for *_, texts, _ in chart._points for text in texts]
    assert said[:2] == [
        "LoFT-4: 91.00 ± 1.41 % (2 seeds), 400 B",
        "LoFT-4, exchange, int8: 90.50 ± 0.71 % (2 seeds), 40 B",
    ]
    assert len(said) == 4
    assert "sends nothing" in chart.caption
    assert chart.render().png


def test_two_settings_of_one_method_are_told_apart_and_few_are_not_drawn(tmp_path):
    runs = [run(tmp_path / f"steps{n}/seed0", 0, 0.9, 10 * n, local_steps=n) for n in (1, 2, 3)]
    names = [setting.name for setting in settings_of(group_comparable_runs(runs)[0])]
    assert names == ["LoFT-4 (steps1)", "LoFT-4 (steps2)", "LoFT-4 (steps3)"]
    assert accuracy_by_setting("x", group_comparable_runs(runs)[0])
    assert accuracy_by_setting("x", group_comparable_runs(runs[:2])[0]) is None
