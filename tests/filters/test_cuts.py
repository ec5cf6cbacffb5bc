"""Filters that lie on a part of an axis: behind a flatten, in a concatenation. NumPy's indexing is the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loft_jax import FilterGroup, Place, extract, filter_scores, merge
from loft_jax.filters.cuts import filter_cuts

# Four filters behind a flatten of three positions, two filters behind them in a concatenation, and one entry of nobody.
FLAT = FilterGroup("flat", 4, {"params/a/kernel": 1, "params/b/kernel": Place(0, repeats=((3, 4),))}, True)
TAIL = FilterGroup("tail", 2, {"params/c/kernel": 1, "params/b/kernel": Place(0, offset=12)}, True)
OUT = FilterGroup("out", 2, {"params/b/kernel": 1}, True)
GROUPS = (FLAT, TAIL, OUT)
OWNED = {"flat": [1, 3], "tail": [0], "out": [1]}
ROWS = [1, 3, 5, 7, 9, 11, 12, 14]


def variables():
    rng = np.random.default_rng(0)
    shapes = {"a": (5, 4), "b": (15, 2), "c": (5, 2)}
    return {"params": {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}}


@pytest.mark.parametrize(
    ("place", "width", "expected"),
    [
        (Place(0), 3, [[0], [1], [2]]),
        (Place(0, offset=4), 2, [[4], [5]]),
        (Place(0, repeats=((2, 3),)), 3, [[0, 3], [1, 4], [2, 5]]),
        (Place(0, offset=1, stride=2, repeats=((2, 1),)), 2, [[1, 2], [3, 4]]),
        (Place(0).spread(2, 3, 1), 3, [[0, 3], [1, 4], [2, 5]]),
        (Place(0).spread(1, 3, 2), 3, [[0, 1], [2, 3], [4, 5]]),
        (Place(0, offset=1).spread(2, 4, 2), 2, [[2, 3, 10, 11], [4, 5, 12, 13]]),
    ],
)
def test_entries_of_filters(place, width, expected):
    np.testing.assert_array_equal(place.entries(width), expected)
    assert place.entries_of_a_filter() == len(expected[0])


def test_extract_takes_the_entries_of_the_owned_filters_and_those_of_nobody():
    full = variables()
    compact = extract(full, GROUPS, OWNED)["params"]
    np.testing.assert_array_equal(compact["a"]["kernel"], full["params"]["a"]["kernel"][:, [1, 3]])
    np.testing.assert_array_equal(compact["b"]["kernel"], full["params"]["b"]["kernel"][np.ix_(ROWS, [1])])


def test_merge_writes_them_back_and_nothing_else():
    full = variables()
    compact = jax.tree.map(lambda leaf: leaf + 1, extract(full, GROUPS, OWNED))
    merged = merge(full, GROUPS, OWNED, compact)["params"]["b"]["kernel"]
    expected = full["params"]["b"]["kernel"].copy()
    expected[np.ix_(ROWS, [1])] += 1
    np.testing.assert_array_equal(merged, expected)


def test_traced_indices_give_the_same():
    full = variables()
    owned = {name: jnp.asarray(indices) for name, indices in OWNED.items()}
    traced = jax.jit(lambda owned: extract(full, GROUPS, owned))(owned)
    jax.tree.map(np.testing.assert_array_equal, traced, extract(full, GROUPS, OWNED))


def test_values_of_filters_are_spread_over_an_axis():
    (rows, columns) = filter_cuts(GROUPS)["params/b/kernel"]
    values = {"flat": jnp.array([[2.0, 3, 4, 5]]), "tail": jnp.array([[6.0, 7]]), "out": jnp.array([[8.0, 9]])}
    np.testing.assert_array_equal(rows.spread(15, values), [[2, 3, 4, 5, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7, 1]])
    np.testing.assert_array_equal(columns.spread(2, values), [[8, 9]])
    np.testing.assert_array_equal(np.flatnonzero(rows.shared(15)), [14])


def test_scores_of_filters_with_several_entries_are_norms_over_all_of_them():
    group = FilterGroup("heads", 3, {"params/q/kernel": Place(1, stride=2, repeats=((2, 1),))}, True, "params/q/kernel")
    kernel = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    scores = filter_scores({"params": {"q": {"kernel": kernel}}}, [group])["heads"]
    np.testing.assert_allclose(scores, np.linalg.norm(kernel.reshape(4, 3, 2), axis=(0, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place(0, offset=14), "'tail' has 2 filters along axis 0 of 'params/b/kernel', whose shape is"),
        (Place(2), "'tail' has 2 filters along axis 2 of 'params/b/kernel', whose shape is"),
        (Place(0, offset=11), "'flat', 'tail': overlap on axis 0 of 'params/b/kernel'"),
        (0, "'tail' has 2 filters along axis 0"),
    ],
)
def test_places_that_do_not_fit_are_refused(place, message):
    tail = FilterGroup("tail", 2, {"params/b/kernel": place}, True)
    with pytest.raises(ValueError, match=message):
        extract(variables(), (FLAT, tail), {"flat": [0], "tail": [0]})
