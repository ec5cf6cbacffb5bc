"""The filter distance: literal values, and the formula in plain double precision."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from loft_jax import (
    FilterGroup,
    expected_footrule,
    filter_scores,
    footrule,
    footrule_matrix,
    normalised_footrule,
    rank_filters,
)
from loft_jax.filters.ranking import check_ranks, check_scores

NAME = "stage1/block1"
# A residual block of two filters: conv1 computes them, conv2 reads them.
BLOCK = FilterGroup(
    NAME, 2, {"params/conv1/kernel": 3, "params/norm/scale": 0, "params/conv2/kernel": 2}, partitioned=True
)
WIDE = FilterGroup("wide", 13, {"params/conv1/kernel": 3}, partitioned=True)


def block_variables(first=(3.0, 4.0), second=(-1.0, 0.0), dtype=np.float32):
    conv1 = np.stack([first, second], axis=-1).reshape(1, 2, 1, 2).astype(dtype)
    # Both axes of conv2 are as wide as the group, so a mistaken kernel or axis shows in the values alone.
    conv2 = np.arange(100, 104, dtype=dtype).reshape(1, 1, 2, 2)
    return {"params": {"conv1": {"kernel": conv1}, "norm": {"scale": np.full(2, 7, dtype)}, "conv2": {"kernel": conv2}}}


def random_ranks(rng, n):
    return rng.permutation(n).astype(np.int32) + 1


def by_the_formula(reference, other):
    """Sum over the reference's positions i of 1/i |ln i - ln sigma(i)|, as the paper has it."""
    filter_at = {int(position): index for index, position in enumerate(reference)}
    return sum(1 / i * abs(math.log(i) - math.log(other[filter_at[i]])) for i in range(1, len(reference) + 1))


def with_swapped_positions(reference, i, j):
    other = reference.copy()
    other[reference == i], other[reference == j] = j, i
    return other


@pytest.mark.compat
@pytest.mark.parametrize(
    ("reference", "other", "expected"),
    [
        ([1], [1], 0.0),
        ([2, 3, 1, 4], [2, 3, 1, 4], 0.0),
        ([1, 2], [2, 1], 1.5 * math.log(2)),
        ([1, 2, 3], [3, 2, 1], (1 + 1 / 3) * math.log(3)),
        ([3, 1, 2], [1, 3, 2], (1 + 1 / 3) * math.log(3)),
    ],
)
def test_the_footrule_has_the_papers_literal_values(reference, other, expected):
    distance = footrule(np.array(reference), np.array(other))
    assert (distance.shape, distance.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(distance, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 512, 2048])
def test_the_footrule_is_the_formula_whatever_the_number_of_filters(n):
    rng = np.random.default_rng(n)
    reference = random_ranks(rng, n)
    others = [reference, n + 1 - reference, *(random_ranks(rng, n) for _ in range(3))]
    if n > 1:
        # The bottom neighbours are where the difference of two float32 logarithms would lose its digits.
        others += [with_swapped_positions(reference, 1, 2), with_swapped_positions(reference, n - 1, n)]
    for other in others:
        np.testing.assert_allclose(footrule(reference, other), by_the_formula(reference, other), rtol=1e-5, atol=0)


def test_the_footrule_weighs_the_top_of_its_first_argument():
    one, other = np.array([1, 2, 3]), np.array([3, 1, 2])
    # The filters of `one` go to 3, 1, 2; those of `other`, from the top, to 2, 3, 1.
    forth = math.log(3) + math.log(2) / 2 + math.log(3 / 2) / 3
    back = math.log(2) + math.log(3 / 2) / 2 + math.log(3) / 3
    np.testing.assert_allclose([footrule(one, other), footrule(other, one)], [forth, back], rtol=1e-6)


def test_the_footrule_is_batched_by_vmap():
    rng = np.random.default_rng(0)
    references, others = (np.stack([random_ranks(rng, 7) for _ in range(5)]) for _ in range(2))
    expected = [by_the_formula(*pair) for pair in zip(references, others, strict=True)]
    np.testing.assert_allclose(jax.vmap(footrule)(references, others), expected, rtol=1e-5)
    over_chance = np.array(expected) / expected_footrule(7)
    np.testing.assert_allclose(jax.vmap(normalised_footrule)(references, others), over_chance, rtol=1e-5)


def test_a_row_of_the_footrule_matrix_is_its_reference():
    rng = np.random.default_rng(0)
    ranks = np.stack([random_ranks(rng, 7) for _ in range(5)])
    matrix = footrule_matrix(ranks)
    assert matrix.dtype == jnp.float32
    expected = [[by_the_formula(row, column) for column in ranks] for row in ranks]
    np.testing.assert_allclose(matrix, expected, rtol=1e-5, atol=0)
    assert not np.allclose(matrix, matrix.T)


@pytest.mark.parametrize("n", range(1, 7))
def test_the_expected_footrule_is_the_mean_over_all_rankings(n):
    reference = list(range(1, n + 1))
    mean = np.mean([by_the_formula(reference, other) for other in itertools.permutations(reference)])
    np.testing.assert_allclose(expected_footrule(n), mean, rtol=1e-12, atol=0)


def test_the_expected_footrule_of_many_filters_is_the_double_sum():
    positions = np.arange(1, 513)
    differences = np.abs(np.log(positions)[:, None] - np.log(positions))
    np.testing.assert_allclose(expected_footrule(512), (differences.mean(axis=1) / positions).sum(), rtol=1e-11)


def test_a_random_ranking_is_at_distance_one_of_chance():
    rng = np.random.default_rng(0)
    reference = random_ranks(rng, 64)
    others = np.stack([random_ranks(rng, 64) for _ in range(4000)])
    distances = np.asarray(jax.vmap(normalised_footrule, in_axes=(None, 0))(reference, others))
    # Four standard errors of the mean; they are under 1 %, so that the test says something.
    tolerance = 4 * distances.std() / math.sqrt(len(distances))
    assert tolerance < 0.02
    np.testing.assert_allclose(distances.mean(), 1, atol=tolerance)


def test_a_single_filter_is_at_normalised_distance_zero():
    assert normalised_footrule(np.array([1]), np.array([1])) == 0.0


@pytest.mark.compat
@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([0.5, 2.0, 1.0], [3, 1, 2]),
        ([3, 1, 2], [1, 3, 2]),
        ([1.0, 1.0, 1.0], [1, 2, 3]),
        ([2.0, 3.0, 2.0, 3.0], [3, 1, 4, 2]),
        ([0.0, -0.0, 0.0], [1, 2, 3]),
        ([1.0] * 600, list(range(1, 601))),
        ([np.nan, 1.0, 2.0], [3, 2, 1]),
        ([np.nan, -np.inf, -np.nan, np.inf], [3, 2, 4, 1]),
    ],
)
def test_the_highest_score_ranks_first_ties_by_lower_index_and_nan_last(scores, ranks):
    ranked = rank_filters(np.array(scores))
    assert ranked.dtype == jnp.int32
    assert ranked.tolist() == ranks


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0, np.inf, np.nan]), min_size=6, max_size=6))
def test_ranks_are_the_positions_in_a_stable_sort(scores):
    order = sorted(range(6), key=lambda i: (math.isnan(scores[i]), 0 if math.isnan(scores[i]) else -scores[i], i))
    ranks = np.asarray(rank_filters(np.array(scores)))
    assert ranks[order].tolist() == [1, 2, 3, 4, 5, 6]
    check_ranks(ranks, NAME)


@pytest.mark.parametrize(("norm", "expected"), [("l1", [7, 1]), ("l2", [5, 1])])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_a_score_is_the_norm_of_a_filter_of_the_kernel_that_computes_it(convert, norm, expected):
    scores = filter_scores(jax.tree.map(convert, block_variables()), [BLOCK], norm)
    assert list(scores) == [NAME]
    assert scores[NAME].dtype == jnp.float32
    assert scores[NAME].tolist() == expected


def test_the_scores_of_a_dense_layer_run_along_its_last_axis_and_are_l2_unless_told():
    group = FilterGroup("hidden", 3, {"params/a/kernel": 1, "params/a/bias": 0, "params/b/kernel": 0}, partitioned=True)
    variables = {"params": {"a": {"kernel": np.array([[3.0, 0, 1], [4, 2, 0]]), "bias": np.full(3, 9.0)}}}
    variables["params"]["b"] = {"kernel": np.full((3, 3), 9.0)}
    assert filter_scores(variables, [group])["hidden"].tolist() == [5, 2, 1]


def test_scores_of_half_precision_kernels_do_not_overflow():
    variables = block_variables(first=(300.0, 400.0), dtype=np.float16)
    assert filter_scores(variables, [BLOCK])[NAME].tolist() == [500, 1]


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
def test_a_pytorch_kernel_gives_the_same_norms_once_it_is_transposed(norm, order):
    weight = np.random.default_rng(0).normal(size=(5, 3, 2, 4))
    group = FilterGroup("conv", 5, {"params/conv/kernel": 3}, partitioned=True)
    scores = filter_scores({"params": {"conv": {"kernel": weight.transpose(2, 3, 1, 0)}}}, [group], norm)["conv"]
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, np.linalg.norm(weight.reshape(5, -1), ord=order, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "width", "message"),
    [
        ({"params/gone/kernel": 3}, 2, "declares 'params/gone/kernel', which is not among the variables"),
        ({"params/conv1/kernel": 3, "params/gone/kernel": 2}, 2, "declares 'params/gone/kernel', which is not among"),
        ({"params/norm/scale": 0}, 2, r"must have one kernel along whose last axis its filters run, not \[\]"),
        ({"params/conv2/kernel": 2}, 2, r"must have one kernel along whose last axis its filters run, not \[\]"),
        ({"params/conv1/kernel": 3, "params/conv2/kernel": 3}, 2, "must have one kernel .*conv1/kernel.*conv2/kernel"),
        ({"params/conv1/kernel": 3}, 3, "'params/conv1/kernel' has 2 filters, and the model declares 3"),
    ],
)
def test_a_group_without_its_one_kernel_is_refused_by_name(axes, width, message):
    with pytest.raises(ValueError, match=f"filter group '{NAME}'.*{message}"):
        filter_scores(block_variables(), [FilterGroup(NAME, width, axes, partitioned=True)])


@pytest.mark.parametrize("ranks", [[0, 1], [1, 1], [1, 3], [1.5, 1], [2, -1]])
def test_ranks_that_are_no_permutation_are_refused_by_group(ranks):
    with pytest.raises(ValueError, match=rf"filter group '{NAME}': ranks must be a permutation of 1\.\.2"):
        check_ranks(np.array(ranks), NAME)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0, np.nan, np.inf], r"2 scores .* filter 1 \(nan\)"), ([-np.inf, 1.0], r"1 scores .* filter 0 \(-inf\)")],
)
def test_scores_that_are_not_finite_are_refused_by_group(scores, message):
    check_scores(np.array([0.0, 1.0]), NAME)
    with pytest.raises(ValueError, match=f"filter group '{NAME}': {message}"):
        check_scores(np.array(scores), NAME)


# Widths that no other test has, so that the first call must be traced.
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (rank_filters, [(13,)]),
        (footrule, [(13,), (13,)]),
        (footrule_matrix, [(3, 13)]),
        (lambda kernel: filter_scores({"params": {"conv1": {"kernel": kernel}}}, [WIDE]), [(1, 1, 2, 13)]),
    ],
)
def test_a_call_is_one_program_and_the_next_of_the_same_shapes_is_not_traced(function, shapes, caplog):
    rng = np.random.default_rng(0)
    for programs in (1, 0):
        arguments = [rng.permuted(np.broadcast_to(np.arange(1.0, 14), shape), axis=-1) for shape in shapes]
        caplog.clear()
        with jax.log_compiles():
            function(*arguments)
        assert sum(message.startswith("Compiling ") for message in caplog.messages) == programs
    assert caplog.messages == []


def test_arrays_in_the_other_byte_order_are_taken():
    scores = np.array([3.0, 1.0, 2.0], ">f4")
    ranks = rank_filters(scores)
    assert ranks.tolist() == [1, 3, 2]
    foreign = np.asarray(ranks).astype(">i4")
    assert footrule(foreign, other=foreign[::-1]) == footrule(ranks, ranks[::-1])
    np.testing.assert_array_equal(footrule_matrix(np.stack([foreign, foreign[::-1]]))[0, 0], 0)
    kernel = np.arange(8.0).reshape(2, 4)
    group = FilterGroup("one", 4, {"params/a/kernel": 1}, partitioned=True)
    one, other = (
        filter_scores({"params": {"a": {"kernel": k}}}, [group])["one"] for k in (kernel, kernel.astype(">f8"))
    )
    np.testing.assert_array_equal(one, other)


def test_a_kernel_wider_than_its_group_is_refused():
    group = FilterGroup("g", 1, {"params/conv1/kernel": 3}, partitioned=True)
    with pytest.raises(ValueError, match="'params/conv1/kernel' has 2 filters, and the model declares 1"):
        filter_scores({"params": {"conv1": {"kernel": np.ones((1, 1, 1, 2))}}}, [group])
