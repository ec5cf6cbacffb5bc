"""Filters that go from owner to owner: the dealt partitions, and a round against one that sums into the full CNN."""

import jax
import numpy as np
import pytest
from helpers.runs import assert_same_state, config_of, opened, train_rounds
from helpers.tiny import Run, as_dict, config, flat, train_alike
from helpers.two_layers import TwoLayers

from loft_jax import FilterGroup, deal_partition, draw_partition
from loft_jax.devices.mesh import WORKER, replicate
from loft_jax.filters import MOMENTS
from loft_jax.loft.state import State
from loft_jax.storage.checkpoints import read_state
from loft_jax.train.__main__ import run

ADAM = {"optimizer__name": "adam", "optimizer__learning_rate": 0.01}
GROUPS = [FilterGroup(name, width, {}, True) for name, width in (("a", 16), ("b", 32))]


def exchange(**settings):
    return config(loft__sync="exchange", **settings)


@pytest.mark.parametrize(("workers", "width"), [(2, 8), (4, 16), (4, 8), (4, 24), (8, 8), (3, 12), (1, 4)])
def test_every_ordered_pair_of_workers_exchanges_the_same_number_to_within_one(workers, width):
    group = FilterGroup("a", width, {}, True)
    old = np.asarray(draw_partition(jax.random.key(0), [group], workers)["a"])
    for seed in range(5):
        new = np.asarray(deal_partition(jax.random.key(seed), {"a": old})["a"])
        assert (new.sum(axis=0) == 1).all()
        assert (new.sum(axis=1) == width // workers).all()
        exchanged = old.astype(int) @ new.astype(int).T
        even, extra = divmod(width // workers, workers)
        assert set(exchanged.ravel()) <= ({even, even + 1} if extra else {even})


@pytest.mark.parametrize("width", [16, 8, 24])
def test_every_filter_is_equally_likely_to_go_anywhere(width):
    old = draw_partition(jax.random.key(0), [FilterGroup("a", width, {}, True)], 4)
    deal = jax.jit(jax.vmap(lambda key: deal_partition(key, old)["a"]))
    share = np.asarray(deal(jax.random.split(jax.random.key(1), 4000))).mean(axis=0)
    # Standard error 0.007; six of them.
    np.testing.assert_allclose(share, 1 / 4, atol=0.041)


def test_groups_are_dealt_independently_and_by_the_key_alone():
    old = draw_partition(jax.random.key(0), [*GROUPS, FilterGroup("c", 16, {}, True)], 4)
    old["c"] = old["a"]
    one, same, other = (deal_partition(jax.random.key(seed), old) for seed in (1, 1, 2))
    assert all((one[name] == same[name]).all() for name in old)
    assert (one["a"] != other["a"]).any()
    assert (one["a"] != one["c"]).any()


@pytest.mark.parametrize(
    "masks",
    [np.eye(4, dtype=bool)[:, :3], np.ones((2, 4), bool), np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool), np.eye(4)],
)
def test_what_is_no_partition_in_equal_parts_is_not_dealt(masks):
    with pytest.raises(ValueError, match="'a': rows must own equally many filters, and each filter must"):
        deal_partition(jax.random.key(0), {"a": masks})


@pytest.mark.parametrize(
    ("workers", "devices", "fused", "settings"),
    [
        pytest.param(2, 2, False, {}, marks=pytest.mark.compat),
        pytest.param(4, 4, True, {"loft__partition": "all"}, marks=pytest.mark.full),
        pytest.param(4, 2, False, {"loft__momentum": "reset"}, marks=pytest.mark.full),
        pytest.param(4, 1, False, {"loft__partition": "all"}, marks=pytest.mark.full),
        pytest.param(2, 2, False, ADAM, marks=pytest.mark.full),
    ],
)
def test_rounds_equal_those_of_psum_given_the_same_partitions(workers, devices, fused, settings):
    """S = 2 exchanges shares of 2 filters; S = 4 fewer filters than there are workers, so shares are padded.

    With Adam, weights are pruned too.
    """
    mesh = {"mesh__worker": devices, "loft__workers": workers}
    pruned = settings is ADAM
    one, other = (Run(make(**mesh, **settings), fused=fused, pruned=pruned) for make in (exchange, config))
    split = {path for group in one.round.groups if group.partitioned for path in group.axes}
    for _ in range(3):
        state, loss = train_alike(one, other)
        np.testing.assert_allclose(one.loss, loss, rtol=1e-6)
        expected = flat(as_dict(jax.device_get(other.state)))
        got = flat({name: part for name, part in state.items() if name != "owners"})
        assert got.keys() == expected.keys()
        for path in got:
            collection, *names = path.strip("[']").split("']['")
            if "/".join(["params" if collection in MOMENTS else collection, *names]) in split:
                np.testing.assert_array_equal(got[path], expected[path], err_msg=path)
            else:
                np.testing.assert_allclose(got[path], expected[path], rtol=0, atol=1e-6, err_msg=path)


def test_the_partition_follows_from_the_last_one():
    run = Run(exchange())
    before = jax.device_get(run.state.owners)
    after = run.rounds(1)["owners"]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 1)
    np.testing.assert_array_equal(after["stage2/block2"], deal_partition(key, before)["stage2/block2"])
    assert (after["stage2/block2"] != before["stage2/block2"]).any()


def test_no_device_holds_a_partitioned_variable_whole_between_rounds():
    run = Run(exchange())
    run.rounds(1)
    kernel = run.state.slices["params/stage2_block2/conv1/kernel"]
    assert kernel.shape == (4, 3, 3, 8, 2), "each of 4 workers holds 2 of the 8 filters"
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(WORKER)
    assert all(shard.data.shape[0] == 1 for shard in kernel.addressable_shards)
    declared = {path for group in run.round.groups if group.partitioned for path in group.axes}
    assert not declared & run.state.shared.keys()


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_what_is_placed_and_assembled_again_is_the_same(devices):
    run = Run(exchange(mesh__worker=devices))
    full = run.round.full(run.state)
    assert_same_state(jax.device_get(run.round.full(run.round.place(full))), jax.device_get(full))
    assert flat(full).keys() - {".owners['stage2/block2']"} == flat(Run(config()).state).keys()


@pytest.mark.full
@pytest.mark.parametrize("change", [{"loft__workers": 1}, {"loft__partition": "none"}])
def test_where_nothing_is_split_nothing_is_exchanged(change):
    one, other = (Run(settings(**change)).rounds(2) for settings in (exchange, config))
    assert_same_state(one, other)


@pytest.mark.parametrize("devices", [1, 2, pytest.param(4, marks=pytest.mark.full)])
def test_variables_of_two_split_groups_are_summed_and_the_others_travel(devices):
    one, other = (Run(settings(mesh__worker=devices), model=TwoLayers()).rounds(1) for settings in (exchange, config))
    assert_same_state({name: one[name] for name in other}, other)


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    settings = config_of(loft={"sync": "exchange"})
    path = tmp_path_factory.mktemp("runs") / "exchange"
    run(settings, opened(path, settings))
    return path


@pytest.mark.full
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(exchanged, tmp_path):
    settings = config_of(loft={"sync": "exchange"})
    train_rounds(tmp_path / "resumed", settings, 5)
    run(settings, opened(tmp_path / "resumed", settings))
    saved = read_state(exchanged / "checkpoints", 6)
    assert saved["training"]["owners"].keys() == {"stage2/block2", "stage2/block3", "stage3/block2", "stage3/block3"}
    assert_same_state(read_state(tmp_path / "resumed/checkpoints", 6), saved)


@pytest.mark.full
def test_a_run_goes_on_with_another_number_of_devices():
    four, two = Run(exchange()), Run(exchange(mesh__worker=2))
    two.state = two.round.place(replicate(State(**four.rounds(1)), two.mesh))
    one, other = four.rounds(1), two.rounds(1)
    assert_same_state(one["owners"], other["owners"])
    for path, leaf in flat(one["params"]).items():
        np.testing.assert_allclose(leaf, flat(other["params"])[path], rtol=0, atol=1e-6, err_msg=path)
