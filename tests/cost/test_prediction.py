"""Predicted bytes, the paper's table from them, and the segments of a network that its cuts are made of."""

import csv
import io
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from loft_jax import create_model
from loft_jax.cost.prediction import COLUMNS, ParameterSplit, communication_table, gpipe_bytes
from loft_jax.gpipe.cuts import boundary_floats
from loft_jax.models.families.mlp import MLP
from loft_jax.models.linen import LinenSource
from loft_jax.models.traced import TracedNetwork

MODEL = create_model("preresnet20", 3, width=4)


@pytest.fixture(scope="module")
def table():
    return communication_table()


@pytest.mark.full
def test_the_table_has_the_papers_twenty_cells(table):
    assert len(table) == 20
    assert {row["method"] for row in table} == {"LoFT-2", "LoFT-4", "GPipe-2", "GPipe-4"}


def test_every_loft_cell_is_predicted_within_5_hundredths_of_a_percent(table):
    assert max(abs(row["relative_error"]) for row in table if row["method"].startswith("LoFT")) < 5e-4


def test_every_gpipe_cell_is_predicted_within_2_percent_and_exactly_as_the_paper_counts(table):
    for row in (row for row in table if row["method"].startswith("GPipe")):
        assert abs(row["relative_error"]) < 0.02
        assert round(row["predicted_gb_as_printed"], 2) == row["published_gb"]


def test_improvements_are_the_printed_ones_but_for_the_one_that_does_not_follow_from_its_row(table):
    improvements = [f"{row['improvement']:.2f}" for row in table if row["improvement"]]
    # Printed: 21.60 and 40.77 for ImageNet; 20954.24 / 791.09 is 26.49.
    assert improvements == ["1.26", "3.20", "1.26", "3.20", "1.26", "3.19", "1.26", "3.19", "26.49", "40.78"]


def test_the_parameters_of_a_network_are_split_without_remainder():
    split = ParameterSplit.from_groups(MODEL, MODEL.filter_groups(), (8, 8, 3), 2)
    # Blocks 2 and 3 of stages 2 and 3: two 3x3 kernels and the inner norm's scale and bias.
    assert split.partitioned == sum(2 * (2 * 9 * n * n + 2 * n) for n in (8, 16))
    # Stage 1, and the first blocks of stages 2 and 3.
    assert split.shared_kernels == 3 * 2 * 9 * 4 * 4 + sum(9 * n // 2 * n + 9 * n * n for n in (8, 16))
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert split.partitioned + split.shared_kernels + split.rest == sum(x.size for x in jax.tree.leaves(shapes))
    assert split.server_bytes(4) == 4 * (2 * split.partitioned + 4 * (2 * split.shared_kernels + split.rest))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_of_a_kernel_between_two_split_layers_a_worker_sends_its_block(workers):
    """Of matrices a worker sends from 1/S (one side is split) to 1/S^2 (both are)."""
    model = TracedNetwork(LinenSource(MLP(10, (16, 16), running=False, head_norm=True)), (5,))
    groups = [replace(group, partitioned=True) for group in model.filter_groups()]
    split = ParameterSplit.from_groups(model, groups, (5,), workers)
    share = 16 // workers
    assert split.partitioned / workers == 5 * share + share * share + share * 10 + 2 * 2 * share
    assert (split.shared_kernels, split.rest) == (0, 0)


def test_boundaries_are_the_activations_behind_a_block():
    cuts = ["stage1/block3", "stage2/block1", "stage3/block2"]
    assert boundary_floats(MODEL, (8, 8, 3), cuts) == [8 * 8 * 4, 4 * 4 * 8, 2 * 2 * 16]
    assert gpipe_bytes([100, 50], images=10) == 2 * 4 * 150 * 10


@pytest.mark.parametrize("cut", ["stage3/block3", "stage4/block1", "stem"])
def test_a_cut_that_is_no_block_with_another_behind_it_is_refused(cut):
    with pytest.raises(ValueError, match=f"cut '{cut}': must be a block with another one after it: stage1/block1, "):
        boundary_floats(MODEL, (8, 8, 3), [cut])


@pytest.mark.full
@pytest.mark.parametrize("name", ["preresnet20", "resnet18"])
def test_segments_one_after_another_are_the_network(name):
    model, image = create_model(name, 3, width=4), jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    options = {"xla_backend_optimization_level": 0}
    variables = jax.jit(model.init, compiler_options=options)(jax.random.key(0), image)
    blocks = len(model.block_names())
    activations, held = image, set()
    for first, last in ((0, 2), (2, 3), (3, blocks)):
        segment = model.with_segment(first, last)
        own = flatten_dict(jax.eval_shape(segment.init, jax.random.key(0), activations), sep="/").keys()
        assert not held & own
        held |= own
        activations = segment.apply(variables, activations)
    assert held == flatten_dict(variables, sep="/").keys()
    np.testing.assert_allclose(activations, model.apply(variables, image), rtol=1e-6)


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (2, 2), (3, 1), (0, 10)])
def test_a_segment_without_blocks_or_beyond_them_is_refused(first, last):
    with pytest.raises(ValueError, match=f"segment {first} to {last}: must hold some of the 9 blocks"):
        MODEL.with_segment(first, last)


def cost(*arguments):
    return subprocess.run([sys.executable, "-m", "loft_jax.cost", *arguments], capture_output=True, text=True)


@pytest.mark.full
def test_the_command_prints_the_table_as_csv():
    done = cost("--paper", "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert tuple(rows[0]) == COLUMNS
    assert [float(row["published_gb"]) for row in rows[:2]] == [131.88, 104.59]
    assert rows[0]["improvement"] == ""
