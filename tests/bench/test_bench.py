"""What the bench makes of its times, and the one of its figures that does not depend on the machine."""

import subprocess
import sys

import pytest

from loft_jax.bench.__main__ import flops_of_deep_sub_cnn, footrule_rows, ratio_row
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "--pairs: 0: must be a whole number of at least 1"),
        (["--json", "no/where.json"], "does not exist"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    done = subprocess.run([sys.executable, "-m", "loft_jax.bench", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
