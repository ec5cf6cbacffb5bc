"""Features instead of images: normalised each by itself, never cropped or mirrored, for networks of dense layers."""

import numpy as np
import pytest
from helpers.runs import config_of, opened
from helpers.tiny import flat

from loft_jax.config.config import Config
from loft_jax.data.dataset import Dataset
from loft_jax.data.digits import load_digits
from loft_jax.data.facts import Facts
from loft_jax.data.load import prepare_dataset
from loft_jax.data.memory import image_data
from loft_jax.data.preparation import Preparation
from loft_jax.errors import UserError
from loft_jax.storage.checkpoints import read_state
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.train.__main__ import run
from loft_jax.train.experiment import Experiment

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(5, 1e-4, (6, 7)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 0, 1])


def features(train=FEATURES, test=FEATURES[:2]):
    return image_data(train, LABELS, test, LABELS[:2])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint8])
def test_features_are_kept_as_float32_or_uint8(dtype):
    given = FEATURES.astype(dtype)
    data = features(given, given[:2])
    np.testing.assert_array_equal(data.train_images, given.astype(data.train_images.dtype))
    assert data.train_images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    assert (data.image_shape, data.crop_padding, data.flip, data.has_features) == ((7,), 0, False, True)


def test_each_feature_has_a_mean_and_a_deviation_and_a_constant_one_becomes_0():
    given = FEATURES.copy()
    given[:, 2] = 0.1
    data = features(given, given[:2])
    mean, std = data.channel_statistics
    np.testing.assert_allclose(mean, given.astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(np.delete(std, 2), np.delete(given.astype(float).std(0), 2), rtol=1e-6)
    prepared = Preparation.from_dataset(data, augment=True).for_training(given, None)
    np.testing.assert_allclose(prepared.mean(0), 0, atol=1e-2)  # float32 near 5 has steps of 5e-7
    np.testing.assert_array_equal(prepared[:, 2], 0)


def test_facts_count_their_bytes():
    facts = Facts.from_dataset(features())
    assert facts.device_bytes(1, 1) == (6 + 2) * (7 * 4 + 4)
    assert facts.placeholder(3).train_images.dtype == np.float32
    assert Facts.from_dataset(facts.placeholder(3)).image_shape == (7,)


NAN = np.where(np.arange(7) == 4, np.nan, FEATURES)
BAD = {
    "NaN": ((NAN, FEATURES[:2]), "train_images holds nan at [0, 4]; must be finite float32"),
    "too large": (
        (FEATURES, FEATURES[:2].astype(float) * 1e300),
        "test_images holds inf at [0, 0]; must be finite float32",
    ),
    "whole numbers": ((FEATURES.astype(int), FEATURES[:2]), "train_images is int64; must be uint8"),
    "two numbers": ((FEATURES, FEATURES[:2, :3]), "training images are 7, test images 3; must have one shape"),
    "two dtypes": (
        (FEATURES, FEATURES[:2].astype(np.uint8)),
        "train_images is float32, and test_images uint8; must have one dtype",
    ),
    "images and features": ((FEATURES, np.zeros((2, 7, 1), np.uint8)), "training images are 7, test images 7x1x1"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_what_are_no_features_is_refused(arrays, message):
    with pytest.raises(UserError) as caught:
        features(*arrays)
    assert str(caught.value).startswith(message)


def test_features_are_not_mirrored():
    with pytest.raises(UserError, match=r"data\.flip=true: arrays has features, which cannot be mirrored"):
        prepare_dataset(features(), Config(data={"flip": True}))
    assert prepare_dataset(features(), Config(data={"flip": False, "validation": 2})).validation_images.shape == (2, 7)
    with pytest.raises(ValueError, match="arrays: features cannot be cropped or mirrored"):
        Dataset("arrays", FEATURES, LABELS, FEATURES, LABELS, 2, crop_padding=0, flip=True)


def test_a_network_for_images_refuses_them():
    with pytest.raises(
        UserError, match=r"model\.name=preresnet20: takes images, and arrays has 7 features of each exam"
    ):
        Experiment.build(config_of(), dataset=features())


def test_a_run_on_features_equals_one_on_images_of_one_pixel(tmp_path):
    digits = load_digits(0)
    states = {}
    for name, shape in {"features": (64,), "pixels": (1, 1, 64)}.items():
        np.savez(
            tmp_path / f"{name}.npz",
            train_images=digits.train_images.reshape(-1, *shape),
            train_labels=digits.train_labels,
            test_images=digits.test_images.reshape(-1, *shape),
            test_labels=digits.test_labels,
        )
        data = {"name": "arrays", "data_dir": str(tmp_path / f"{name}.npz"), "augment": name == "features"}
        config = config_of(model={"name": "mlp", "width": 16}, data=data | {"flip": False}, train={"rounds": 2})
        run(config, opened(tmp_path / name, config))
        states[name] = flat(read_state(tmp_path / name / "checkpoints", 2))
    for path, leaf in states["pixels"].items():
        np.testing.assert_allclose(states["features"][path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)
    rows = [RunDirectory(tmp_path / name).rows()[-1]["test/accuracy"] for name in states]
    assert rows[0] == rows[1]
