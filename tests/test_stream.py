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
