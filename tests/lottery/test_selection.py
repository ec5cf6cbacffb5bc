"""What a level removes, against loops over single weights."""

import numpy as np
import pytest

from loft_jax.errors import UserError
from loft_jax.lottery.masks import read_masks, write_masks
from loft_jax.lottery.selection import (
    Pool,
    check_levels,
    count_removed,
    keep_drawn,
    keep_largest,
    make_pools,
    remove_smallest,
)

NAMES = ("conv1", "conv2", "dense1", "head")
SHAPES = {"conv1": (3, 2), "conv2": (2, 2, 3), "dense1": (7,), "head": (4, 5)}


def magnitudes(seed, ties=False):
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 4, shape).astype(float) if ties else rng.random(shape) for name, shape in SHAPES.items()
    }


def by_loop(masks, scores, pools):
    """The same, one weight after another."""
    masks = {name: mask.copy() for name, mask in masks.items()}
    for pool in pools:
        there = [(n, i) for n in pool.names for i in np.ndindex(SHAPES[n]) if masks[n][i]]
        for _ in range(max(1, int(len(there) * pool.rate + 0.5))):
            least = min(scores[n][i] for n, i in there)
            n, i = [(n, i) for n, i in there if scores[n][i] == least][-1]
            masks[n][i] = False
            there.remove((n, i))
    return masks


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("rates", [{"*": 0.2}, {"*": 0.3, "conv*": 0.1, "head": None}, {"*1": 0.3}])
def test_levels_remove_what_a_loop_removes(rates, scope, ties):
    pools = make_pools(NAMES, rates, scope, "layer")
    masks = expected = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    for level in range(1, 4):
        scores = magnitudes(level, ties)
        masks = remove_smallest(masks, scores, pools, level, 3, "weight")
        expected = by_loop(expected, scores, pools)
        for name in NAMES:
            np.testing.assert_array_equal(masks[name], expected[name], err_msg=f"{name}, level {level}")


def test_the_last_pattern_that_matches_counts_and_global_pools_have_one_pattern():
    rates = {"*": 0.2, "conv*": 0.1, "conv2": 0.15, "head": None}
    assert set(make_pools(NAMES, rates, "layer", "layer")) == {
        Pool(("conv1",), 0.1),
        Pool(("conv2",), 0.15),
        Pool(("dense1",), 0.2),
    }
    rates = {"*": 0.2, "conv*": 0.1}
    assert set(make_pools(NAMES, rates, "global", "layer")) == {
        Pool(("conv1", "conv2"), 0.1),
        Pool(("dense1", "head"), 0.2),
    }


@pytest.mark.parametrize(
    ("remaining", "rate", "removed"),
    [(10, 0.2, 2), (12, 0.2, 2), (13, 0.2, 3), (1, 0.1, 1), (4, 0.1, 1), (266, 0.5, 133)],
)
def test_a_share_is_rounded_to_nearest_and_is_at_least_one(remaining, rate, removed):
    assert count_removed(remaining, rate) == removed


def test_lenet_keeps_the_shares_that_its_rates_say():
    sizes = {"dense1": 235_200, "dense2": 30_000, "head": 1_000}
    pools = make_pools(tuple(sizes), {"dense*": 0.2, "head": 0.1}, "layer", "layer")
    left = dict(sizes)
    for _ in range(12):
        for pool in pools:
            left[pool.names[0]] -= count_removed(left[pool.names[0]], pool.rate)
    assert sum(left.values()) / sum(sizes.values()) == pytest.approx(
        (265_200 * 0.8**12 + 1000 * 0.9**12) / 266_200, rel=1e-3
    )


def test_random_masks_and_those_of_the_start_keep_as_many_and_are_nested():
    ticket = {name: magnitudes(5)[name] > 0.4 for name in NAMES}
    smaller = {name: mask & (magnitudes(6)[name] > 0.5) for name, mask in ticket.items()}
    orders = {name: np.random.default_rng(1).permutation(mask.size) for name, mask in ticket.items()}
    for draw in (lambda masks: keep_drawn(orders, masks), lambda masks: keep_largest(magnitudes(7), masks)):
        large, small = draw(ticket), draw(smaller)
        for name in NAMES:
            assert large[name].shape == SHAPES[name]
            assert (large[name].sum(), small[name].sum()) == (ticket[name].sum(), smaller[name].sum())
            assert not (small[name] & ~large[name]).any()
    largest = keep_largest(magnitudes(7), ticket)
    for name in NAMES:
        kept, removed = magnitudes(7)[name][largest[name]], magnitudes(7)[name][~largest[name]]
        assert kept.min(initial=1) > removed.max(initial=0)


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_a_pattern_that_matches_nothing_is_refused_with_the_layers():
    said = refusal(make_pools, NAMES, {"*": 0.2, "dens": 0.1}, "layer", "layer")
    assert said == "lottery.rates: the pattern dens matches no layer; there are conv1, conv2, dense1, head"
    said = refusal(make_pools, NAMES, {"*": None}, "layer", "filter group")
    assert said == "lottery.rates: leaves every filter group whole; give one a share, as *=0.2"


def test_levels_that_would_empty_a_layer_are_refused_by_name_and_level():
    pools = make_pools(("a", "b"), {"a": 0.2, "b": 0.5}, "layer", "layer")
    check_levels({"a": 100, "b": 8}, pools, 3, "weight")
    said = refusal(check_levels, {"a": 100, "b": 8}, pools, 9, "weight")
    assert said.startswith("lottery.levels=9: level 4 would remove the last weight of b; use fewer levels")
    together = make_pools(("a", "b"), {"*": 0.5}, "global", "layer")
    assert "level 3 would remove the last filter of a, b" in refusal(
        check_levels, {"a": 4, "b": 4}, together, 4, "filter"
    )


def test_a_layer_that_is_emptied_by_others_is_refused_by_name_and_level():
    pools = make_pools(("a", "b"), {"*": 0.5}, "global", "layer")
    masks, scores = {"a": np.ones(3, bool), "b": np.ones(5, bool)}, {"a": np.zeros(3), "b": np.ones(5)}
    said = refusal(remove_smallest, masks, scores, pools, 2, 7, "weight")
    assert said.startswith("lottery.levels=7: level 2 would remove the last weight of a; ")


def test_masks_are_read_back(tmp_path):
    masks = {name: magnitudes(1)[name] > 0.5 for name in NAMES} | {"stage1_block1/conv": np.ones((1, 1), bool)}
    shapes = {name: mask.shape for name, mask in masks.items()}
    write_masks(tmp_path / "masks.npz", masks)
    found = read_masks(tmp_path / "masks.npz", shapes)
    assert list(found) == list(masks)
    for name, mask in masks.items():
        assert found[name].dtype == bool
        np.testing.assert_array_equal(found[name], mask)
    said = refusal(read_masks, tmp_path / "masks.npz", shapes | {"head": (5, 4)})
    assert said.endswith(f"masks.npz: holds masks of another network; delete {tmp_path} to train it again")
    content = (tmp_path / "masks.npz").read_bytes()
    for damaged in (content[: len(content) // 2], b"", bytes([content[90] ^ 255]).join([content[:90], content[91:]])):
        (tmp_path / "masks.npz").write_bytes(damaged)
        assert "masks.npz: cannot be read (" in refusal(read_masks, tmp_path / "masks.npz", shapes)
