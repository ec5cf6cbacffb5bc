"""What the bench makes of its times, and the one of its figures that does not depend on the machine."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from loft_jax.bench.against_torch import cases, check_torch
from loft_jax.bench.material import random_images
from loft_jax.bench.parts import flops_of_deep_sub_cnn, footrule_rows, pruned_rows
from loft_jax.bench.rows import ratio_row
from loft_jax.bench.sides import Case, DrawnSteps
from loft_jax.errors import UserError
from loft_jax.train.speed import interleaved


def test_a_row_is_the_median_of_the_pairwise_ratios():
    row = ratio_row("what", [1.0, 9.0, 2.0], [2.0, 3.0, 2.0], "s")
    assert (row["ratio"], row["least"], row["largest"], row["pairs"]) == (1.0, 0.5, 3.0, 3)
    assert (row["a"], row["b"]) == (2.0, 2.0)


def test_pairs_are_interleaved_and_the_first_is_not_counted():
    calls = []
    a, b = interleaved(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert "".join(calls) == "abababab"
    assert len(a) == len(b) == 3


@pytest.mark.full
def test_the_sub_cnn_of_loft_4_costs_at_most_055_of_the_full_step():
    (row,) = flops_of_deep_sub_cnn()
    assert 0.5 < row["ratio"] <= 0.55


def test_the_distance_matrix_is_faster_than_a_numpy_loop():
    (row,) = footrule_rows(pairs=1)
    assert row["ratio"] < 1


def test_without_torch_a_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("loft_jax.bench.against_torch.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--torch: PyTorch is not installed; pip install 'loft_jax\[torch\]'"):
        check_torch()


def test_cases_are_steps_on_one_and_two_cores_and_a_round_on_two(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 7})
    names = [str(case) for case in cases()]
    assert len(names) == len(set(names)) == 9
    assert names[0] == "full step, preresnet18 of width 16, batch 32, 1 core"
    assert names[-1] == "round, preresnet18 of width 16, batch 32, 2 cores"
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3})
    assert all("1 core" in str(case) for case in cases())


def test_our_side_runs_steps_on_drawn_batches_and_they_train():
    case = Case("compact step", "preresnet20", 4, 4, 1)
    steps = DrawnSteps(case, random_images(16))
    before = jax.device_get(steps.state)
    steps(3)
    after = jax.device_get(steps.state)
    before, after = before.unpack(), after.unpack()
    assert not np.array_equal(before.params["stem"]["kernel"], after.params["stem"]["kernel"])
    assert np.any(after.momentum["stem"]["kernel"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "--pairs: 0: must be a whole number of at least 1"),
        (["--json", "no/where.json"], "does not exist"),
        (["--append", "no/where.jsonl"], "--append no/where.jsonl: its directory does not exist"),
        (["--only", "round"], "--only round: chooses rows of --torch; leave it out, or add --torch"),
        (["--seconds", "9"], "--seconds 9: belongs to the accelerator's table; leave it out, or add --table"),
        (["--table", "torch"], "--table: invalid choice: 'torch'"),
        (["--table", "parts", "--torch"], "--table parts: --torch makes a table of its own"),
        (["--torch", "--batches", "8", "16"], "--batches 8 16: belongs to the accelerator's table"),
        (
            ["--table", "accelerator", "--width", "3"],
            "--width 3: loft.workers=4: must divide every partitioned width (6, 12, 24)",
        ),
    ],
)
def test_bad_input_is_refused(arguments, message):
    done = subprocess.run([sys.executable, "-m", "loft_jax.bench", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_step_with_masks_is_timed_beside_one_without():
    (row,) = pruned_rows(pairs=1)
    assert row["what"] == "time of a step with masks over one without, LeNet-300-100"
    assert 0.1 < row["ratio"] < 10
