"""Streamed data: the same indices, labels and pixels as from the device, whoever reads them, and from any round on."""

import numpy as np
import pytest
from prepared import load, photographs, prepare, tiny_content
from tiny import Run, config, flat

from loft_jax.data.batches import worker_order
from loft_jax.data.plans import TrainingPlan
from loft_jax.evaluate import Evaluator, NormEstimator
from loft_jax.randomness import Purpose, key_for

SPLITS = (("train", 40), ("test", 22))


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    """A directory with images of one size: 40 to train and 22 to test on."""
    directory = tmp_path_factory.mktemp("uniform")
    prepare(directory, tiny_content(splits=SPLITS, shape=(6, 5, 3)), shape=(6, 5, 3))
    return directory


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A directory with JPEGs of mixed sizes."""
    directory = tmp_path_factory.mktemp("mixed")
    content = {split: photographs(count, seed) for seed, (split, count) in enumerate(SPLITS)}
    prepare(directory, content, shape=(None, None, 3))
    return directory


@pytest.mark.parametrize(
    ("split", "mesh"),
    [("shared", {}), ("disjoint", {"mesh__worker": 2}), ("shared", {"mesh__worker": 2, "mesh__data": 2})],
    ids=["a device a worker", "two workers a device", "two devices a worker"],
)
def test_a_streamed_run_is_bit_equal_to_one_from_the_device(uniform, split, mesh):
    settings = config(data__split=split, train__rounds=4, **mesh)
    results = []
    for loading in ("device", "stream"):
        run = Run(settings, dataset=load("tiny_images", uniform, loading=loading, readers=0))
        state = flat(run.rounds(4))
        run.data.close()
        results.append(state | {"loss": np.asarray(run.loss)})
    for path, leaf in results[0].items():
        np.testing.assert_array_equal(leaf, results[1][path], err_msg=path)


def test_norm_statistics_and_evaluation_are_those_from_the_device(uniform):
    settings = config(train__norm_batches=5, train__eval_batch_size=4)
    results = []
    for loading in ("device", "stream"):
        run = Run(settings, dataset=load("tiny_images", uniform, loading=loading, readers=0))
        variables = {name: run.state[name] for name in ("params", "batch_stats")}
        estimated = NormEstimator(settings, run.model, run.dataset, run.mesh)(variables, run.data)
        results.append(flat(estimated) | Evaluator(settings, run.model, run.dataset, run.mesh)(estimated))
    for path, leaf in results[0].items():
        np.testing.assert_array_equal(leaf, results[1][path], err_msg=path)


def plan_of(**changes):
    plan = {
        "seed": 3,
        "split": "shared",
        "workers": 4,
        "examples": 40,
        "rounds": 7,
        "local_steps": 3,
        "batch_size": 6,
        "slots": 2,
        "data_shards": 2,
        "devices": (0, 1, 2, 3),
        "chunk_size": 2,
    }
    return TrainingPlan(**{**plan, **changes})


def read_by_workers(plan):
    """Every worker's examples in the order of its stream, from all chunks of a plan; no place twice."""
    read = [{} for _ in range(plan.workers)]
    for number in range(len(plan)):
        chunk = plan.chunk(number)
        for index, position in zip(chunk.indices.tolist(), chunk.positions.tolist(), strict=True):
            assert position not in read[chunk.worker]
            read[chunk.worker][position] = index
    return [[index for _, index in sorted(places.items())] for places in read]


@pytest.mark.compat
@pytest.mark.parametrize("split", ["shared", "disjoint"])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"chunk_size": 3},
        {"slots": 1, "data_shards": 1},
        {"slots": 4, "data_shards": 1, "devices": (0,), "chunk_size": 4},
    ],
    ids=["data shards", "whole parts", "a device a worker", "one device, ragged chunks"],
)
def test_workers_read_what_they_read_from_the_device(split, layout):
    plan = plan_of(split=split, **layout)
    count = plan.rounds * plan.local_steps * plan.batch_size
    sizes = {"count": count, "examples": 40, "workers": 4, "split": split}
    expected = [worker_order(key_for(3, Purpose.ORDER), worker, 0, **sizes).tolist() for worker in range(4)]
    assert read_by_workers(plan) == expected


def test_processes_read_what_their_devices_need_and_nothing_else():
    whole, parts = plan_of(), [plan_of(devices=(0, 1)), plan_of(devices=(2, 3))]
    chunks = [[plan.chunk(number) for number in range(len(plan))] for plan in (whole, *parts)]
    places = [{(c.worker, *c.positions.tolist()) for c in of_one} for of_one in chunks]
    assert not places[1] & places[2]
    assert places[1] | places[2] == places[0]
