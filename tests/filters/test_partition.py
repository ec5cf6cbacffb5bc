"""Partition, extract, merge and prune: literal values, and properties on random declarations."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from loft_jax import FilterGroup, draw_partition, extract, merge, prune
from loft_jax.filters.groups import with_moments
from loft_jax.filters.partition import deal_partition, draw_ranked_partition, owned_indices

# An MLP of two hidden layers: "b" holds outputs of group one and inputs of group two.
MLP = (
    FilterGroup("one", 4, {"params/a/kernel": 1, "params/a/bias": 0, "params/b/kernel": 0}, partitioned=True),
    FilterGroup("two", 6, {"params/b/kernel": 1, "params/c/kernel": 0}, partitioned=True),
)


def mlp_variables(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 4), "b": (4, 6), "c": (6, 2)}
    params = {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}
    params["a"]["bias"] = rng.normal(size=4).astype(np.float32)
    return {"params": params}


def leaves(tree):
    return jax.tree.leaves(tree)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.compat
def test_extract_takes_the_named_filters_of_every_variable():
    variables = {"params": {"a": {"kernel": np.arange(12.0).reshape(3, 4), "bias": np.arange(4.0)}}}
    groups = (FilterGroup("one", 4, {"params/a/kernel": 1, "params/a/bias": 0}, partitioned=True),)
    compact = extract(variables, groups, {"one": np.array([1, 3])})
    np.testing.assert_array_equal(compact["params"]["a"]["kernel"], [[1, 3], [5, 7], [9, 11]])
    np.testing.assert_array_equal(compact["params"]["a"]["bias"], [1, 3])


@pytest.mark.compat
def test_a_variable_of_two_groups_is_sliced_along_both_axes():
    variables = mlp_variables()
    compact = extract(variables, MLP, {"one": np.array([0, 2]), "two": np.array([1, 4, 5])})
    np.testing.assert_array_equal(
        compact["params"]["b"]["kernel"], variables["params"]["b"]["kernel"][np.ix_([0, 2], [1, 4, 5])]
    )
    assert compact["params"]["c"]["kernel"].shape == (3, 2)


def test_indices_may_be_lists_as_a_ticket_file_has_them():
    kept = {"one": [0, 3], "two": [1]}
    assert_equal(
        prune(mlp_variables(), MLP, kept),
        extract(mlp_variables(), MLP, jax.tree.map(np.array, kept, is_leaf=lambda x: isinstance(x, list))),
    )


def test_groups_that_are_not_owned_keep_their_width():
    compact = extract(mlp_variables(), MLP, {"two": np.array([0])})
    assert compact["params"]["a"]["kernel"].shape == (3, 4)
    assert compact["params"]["b"]["kernel"].shape == (4, 1)


def test_merge_writes_owned_slices_and_takes_shared_variables_from_the_compact_ones():
    variables = {"params": {"a": {"kernel": np.zeros((2, 4)), "bias": np.zeros(4)}, "head": np.zeros(2)}}
    groups = (FilterGroup("one", 4, {"params/a/kernel": 1, "params/a/bias": 0}, partitioned=True),)
    compact = {"params": {"a": {"kernel": np.ones((2, 2)), "bias": np.full(2, 5.0)}, "head": np.array([7.0, 8.0])}}
    merged = merge(variables, groups, {"one": np.array([0, 3])}, compact)
    np.testing.assert_array_equal(merged["params"]["a"]["kernel"], [[1, 0, 0, 1], [1, 0, 0, 1]])
    np.testing.assert_array_equal(merged["params"]["a"]["bias"], [5, 0, 0, 5])
    np.testing.assert_array_equal(merged["params"]["head"], [7, 8])


def test_prune_is_extract():
    kept = {"one": np.array([0, 3])}
    assert_equal(prune(mlp_variables(), MLP, kept), extract(mlp_variables(), MLP, kept))


def test_an_absent_collection_is_passed_over_and_momentum_is_sliced_like_its_parameter():
    groups = (FilterGroup("one", 4, {"params/a/bias": 0, "batch_stats/n/mean": 0}, partitioned=True),)
    variables = {"params": {"a": {"bias": np.arange(4.0)}}, "momentum": {"a": {"bias": np.arange(4.0) * 10}}}
    compact = extract(variables, with_moments(groups), {"one": np.array([1, 2])})
    np.testing.assert_array_equal(compact["params"]["a"]["bias"], [1, 2])
    np.testing.assert_array_equal(compact["momentum"]["a"]["bias"], [10, 20])


@st.composite
def declarations(draw):
    """Random layers in a row, each a group; layer i's kernel belongs to groups i and i - 1."""
    workers = draw(st.sampled_from([1, 2, 3, 4]))
    widths = [workers * draw(st.integers(1, 4)) for _ in range(draw(st.integers(1, 3)))]
    axes = [{} for _ in widths]
    shapes, previous = {}, 3
    for i, width in enumerate(widths):
        shapes[f"layer{i}"] = (previous, width)
        axes[i][f"params/layer{i}/kernel"] = 1
        if i:
            axes[i - 1][f"params/layer{i}/kernel"] = 0
        previous = width
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    params = {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}
    partitioned = [draw(st.booleans()) for _ in widths]
    groups = tuple(FilterGroup(f"g{i}", width, axes[i], partitioned[i]) for i, width in enumerate(widths))
    return groups, workers, {"params": params}


@settings(deadline=None, max_examples=15)
@given(declarations(), st.integers(0, 2**31 - 1))
def test_a_partition_is_a_disjoint_cover_in_equal_shares(declaration, seed):
    groups, workers, _ = declaration
    masks = draw_partition(jax.random.key(seed), groups, workers)
    assert set(masks) == {group.name for group in groups if group.partitioned}
    for group in groups:
        if group.partitioned:
            mask = np.asarray(masks[group.name])
            assert mask.shape == (workers, group.width)
            assert mask.dtype == bool
            assert (mask.sum(axis=0) == 1).all()
            assert (mask.sum(axis=1) == group.width // workers).all()


@settings(deadline=None, max_examples=15)
@given(declarations(), st.integers(0, 2**31 - 1))
def test_extract_then_merge_changes_nothing(declaration, seed):
    groups, workers, variables = declaration
    masks = draw_partition(jax.random.key(seed), groups, workers)
    for worker in range(workers):
        owned = {name: np.flatnonzero(mask[worker]) for name, mask in masks.items()}
        assert_equal(merge(variables, groups, owned, extract(variables, groups, owned)), variables)


@settings(deadline=None, max_examples=15)
@given(declarations(), st.integers(0, 2**31 - 1))
def test_merging_writes_just_the_owned_entries(declaration, seed):
    groups, workers, variables = declaration
    masks = draw_partition(jax.random.key(seed), groups, workers)
    owned = {name: np.flatnonzero(mask[0]) for name, mask in masks.items()}
    changed = jax.tree.map(lambda leaf: leaf + 1, extract(variables, groups, owned))
    merged = merge(variables, groups, owned, changed)
    for name, layer in variables["params"].items():
        expected = layer["kernel"].copy()
        rows, columns = (range(n) for n in expected.shape)
        for group in groups:
            axis = group.axes.get(f"params/{name}/kernel")
            if axis is not None and group.name in owned:
                rows, columns = (owned[group.name], columns) if axis == 0 else (rows, owned[group.name])
        expected[np.ix_(list(rows), list(columns))] += 1
        np.testing.assert_array_equal(merged["params"][name]["kernel"], expected)


@pytest.mark.compat
def test_the_draw_is_a_pure_function_of_the_key():
    masks = [draw_partition(jax.random.key(seed), MLP, 2)["two"] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def test_every_filter_is_equally_likely_to_go_to_every_worker():
    draw = jax.jit(jax.vmap(lambda key: draw_partition(key, MLP, 2)["two"]))
    masks = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    share = masks.mean(axis=0)
    # Four standard errors of a proportion of 1/2.
    np.testing.assert_allclose(share, 0.5, atol=4 * 0.5 / np.sqrt(4000))


def test_owned_indices_ascend():
    mask = np.array([[True, False, True, False], [False, True, False, True]])
    assert owned_indices({"one": mask}, {"one": 2}, 1)["one"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("owned", "message"),
    [
        ({"three": [0]}, "no such filter group: 'three'; known: one, two"),
        ({"one": [2, 1]}, "must ascend within"),
        ({"one": [1, 1]}, "must ascend within"),
        ({"one": [0, 4]}, r"must ascend within \[0, 4\)"),
        ({"one": [-1, 0]}, "must ascend within"),
        ({"one": [0.5]}, "1-D integer"),
        ({"one": []}, "non-empty"),
        ({"one": [True, False, True, False]}, "1-D integer"),
    ],
)
def test_wrong_indices_are_refused(owned, message):
    with pytest.raises(ValueError, match=message):
        extract(mlp_variables(), MLP, {name: np.array(indices) for name, indices in owned.items()})


def test_a_declared_variable_that_is_missing_is_refused():
    variables = mlp_variables()
    del variables["params"]["c"]
    with pytest.raises(ValueError, match="declares 'params/c/kernel', which is not among the variables"):
        extract(variables, MLP, {"two": np.array([0])})


@pytest.mark.parametrize("workers", [0, 3, 5])
def test_workers_that_do_not_divide_a_width_are_refused(workers):
    with pytest.raises(ValueError, match=f"workers={workers} must divide the width 4 of filter group 'one'"):
        draw_partition(jax.random.key(0), MLP, workers)


def test_variables_that_are_not_as_wide_as_their_group_are_refused():
    """A ticket's network pruned again by the full one's declaration would be filled with NaN."""
    pruned = prune(mlp_variables(), MLP, {"one": [0, 1, 2]})
    with pytest.raises(
        ValueError, match=r"'one' has 4 filters along axis 1 of 'params/a/kernel', whose shape is \(3, 3"
    ):
        prune(pruned, MLP, {"one": [0, 3]})
    with pytest.raises(ValueError, match=r"along axis 1 of 'params/a/kernel', whose shape is \(4,\)"):
        prune({"params": {**pruned["params"], "a": {"kernel": np.ones(4), "bias": np.ones(4)}}}, MLP, {"one": [0]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a": {"kernel": np.ones((3, 1)), "bias": np.ones(2)}},
            r"'params/a/kernel' is \(3, 1\), but must be \(3, 2\)",
        ),
        ({"a": {"kernel": np.ones((3, 2))}}, r"'params/a/bias' is missing, but must be \(2,\)"),
        ({"d": {"kernel": np.ones(1)}}, r"'params/d/kernel' is \(1,\), but must be absent"),
    ],
)
def test_compact_variables_that_are_not_those_of_the_owned_filters_are_refused(change, message):
    variables, owned = mlp_variables(), {"one": [1, 3]}
    compact = extract(variables, MLP, owned)["params"]
    with pytest.raises(ValueError, match=message):
        merge(variables, MLP, owned, {"params": {**compact, **change}})


def test_arrays_in_the_other_byte_order_are_taken():
    variables, owned = mlp_variables(), {"one": [1, 3]}
    other = jax.tree.map(lambda leaf: leaf.astype(leaf.dtype.newbyteorder()), variables)
    compact = extract(other, MLP, owned)
    assert_equal(compact, extract(variables, MLP, owned))
    foreign = jax.tree.map(lambda leaf: np.asarray(leaf).astype(">f4"), compact)
    assert_equal(merge(other, MLP, owned, foreign), jax.tree.map(np.asarray, variables))


def test_groups_of_one_width_are_split_independently():
    groups = [FilterGroup(name, 32, {f"params/{name}/kernel": 1}, partitioned=True) for name in "ab"]
    drawn = draw_partition(jax.random.key(0), groups, 4)
    assert (drawn["a"] != drawn["b"]).any()
    dealt = deal_partition(jax.random.key(0), {"a": drawn["a"], "b": drawn["a"]})
    assert (dealt["a"] != dealt["b"]).any()


@pytest.mark.parametrize(("width", "workers"), [(16, 4), (32, 4), (8, 8), (12, 3)])
def test_a_ranked_partition_gives_every_worker_as_many_of_each_rank(width, workers):
    groups = [FilterGroup("a", width, {}, True), FilterGroup("whole", 8, {}, False)]
    scores = {"a": np.random.default_rng(0).normal(size=width).astype(np.float32)}
    drawn = [draw_ranked_partition(jax.random.key(seed), groups, workers, scores) for seed in range(20)]
    assert all(masks.keys() == {"a"} for masks in drawn)
    ranks = np.argsort(np.argsort(-scores["a"]))
    for masks in drawn:
        mask = np.asarray(masks["a"])
        assert (mask.sum(axis=0) == 1).all()
        for row in mask:
            assert sorted(ranks[row] // workers) == list(range(width // workers)), "one of each run of ranks"
    assert len({np.asarray(masks["a"]).tobytes() for masks in drawn}) > 10
