"""What people are told of a run: its first lines, its programs, and the figures of its summary."""

import re

import pytest
from helpers.runs import config_of

from loft_jax import create_model
from loft_jax.cost.compiled import CompiledRound, Program
from loft_jax.loft.optimizer import learning_rate_schedule
from loft_jax.models.sizes import parameter_count
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.train.experiment import Experiment
from loft_jax.train.overview import describe_learning_rates, print_programs, print_setup


def test_speeds_are_of_training_and_sync_and_the_sub_cnn_is_counted_by_itself(finished):
    path, summary = finished
    for row in RunDirectory(path).rows()[1:]:
        seconds = row["seconds/train"] + row["seconds/sync"]
        assert row["images_per_second"] == pytest.approx(4 * 2 * 8 / seconds)
    seconds = summary["seconds/train"] + summary["seconds/sync"]
    assert summary["images_per_second"] == pytest.approx(summary["images"] / seconds)
    model = create_model("preresnet20", 10, width=4)
    shares = {group.name: group.width // 4 for group in model.filter_groups() if group.partitioned}
    assert summary["parameters_sub_cnn"] == parameter_count(model.with_widths(shares), (8, 8, 1))
    assert summary["parameters"] == parameter_count(model, (8, 8, 1))


def test_the_best_accuracy_has_a_name_of_its_own(finished):
    path, summary = finished
    rows = [row for row in RunDirectory(path).rows() if "test/accuracy" in row]
    assert summary["test/accuracy"] == rows[-1]["test/accuracy"]
    assert summary["test/accuracy_best"] == max(row["test/accuracy"] for row in rows)
    assert summary["round_best"] in [r["round"] for r in rows if r["test/accuracy"] == summary["test/accuracy_best"]]


def test_the_learning_rate_of_a_row_is_that_of_its_last_step(finished):
    rate = learning_rate_schedule(config_of())
    for row in RunDirectory(finished[0]).rows()[1:]:
        assert row["learning_rate"] == float(rate(row["step"] - 1))


@pytest.mark.parametrize(
    ("settings", "end", "said"),
    [
        ({"schedule": "constant"}, 4, "learning rate 0.8"),
        ({"schedule": "constant", "warmup_steps": 8}, 4, "learning rate 0.4 at its last local step, 0.1 to 0.4 over"),
        ({"schedule": "step", "warmup_steps": 2}, 12, "learning rate 0.08 at its last local step, 0.08 to 0.8 over"),
        ({"schedule": "cosine"}, 20, "learning rate 0.00492 at its last local step, 0.00492 to 0.0764 over the round"),
    ],
)
def test_a_rounds_learning_rates_are_those_of_its_last_step_and_a_range(settings, end, said):
    config = config_of(optimizer={"learning_rate": 0.8, **settings}, train={"rounds": 5}, loft={"local_steps": 4})
    assert describe_learning_rates(learning_rate_schedule(config), end, 4).startswith(said)


def test_workers_a_device_and_the_sub_cnns_share_are_said(capsys):
    print_setup(Experiment.build(config_of(mesh={"worker": 1})))
    said = capsys.readouterr().out
    assert "mesh      worker 1 x data 1; 4 workers, 4 a device" in said
    pattern = r"preresnet20: ([\d,]+) parameters; sub-CNN of a worker: ([\d,]+) \((\d+)%\)"
    full, compact, share = (int(text.replace(",", "")) for text in re.search(pattern, said).groups())
    assert share == round(100 * compact / full)
    assert share < 100


def test_a_programs_peak_leaves_out_results_that_take_an_arguments_place(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    sizes = {"arguments": 8 * 10**6, "results": 4 * 10**6, "temporary": 2 * 10**6, "aliased": 3 * 10**6}
    print_programs(CompiledRound((Program("step", 1, 5e9, 0.0, **sizes),), 0, 1))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ step")]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        *("step", "5.000 G", "8.00 MB", "4.00 MB", "2.00 MB", "11.00 MB")
    ]
