"""Data sets as arrays, the order in which workers read them, and augmentation."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

from loft_jax.config.config import Config
from loft_jax.data.batches import Augmentation, normalise, worker_order
from loft_jax.data.dataset import Dataset
from loft_jax.data.digits import load_digits
from loft_jax.data.load import load_dataset
from loft_jax.errors import UserError

# Digits


def test_digits_are_1437_and_360_grey_images_of_ten_classes():
    data = load_dataset(Config())
    assert (data.train_images.shape, data.test_images.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (data.train_images.dtype, data.train_labels.dtype) == (np.uint8, np.int32)
    assert (data.test_images.dtype, data.test_labels.dtype) == (np.uint8, np.int32)
    assert (data.name, data.num_classes, data.crop_padding, data.flip) == ("digits", 10, 1, False)


def test_what_is_no_config_is_named():
    """As the config of a checkpoint that is no longer known."""
    with pytest.raises(TypeError, match="config must be a Config, not NoneType; for a run, load_checkpoint"):
        load_dataset(None)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_gives_a_fifth_of_its_digits_to_the_test_set(seed):
    data = load_digits(seed)
    train, test = (np.bincount(labels, minlength=10) for labels in (data.train_labels, data.test_labels))
    assert (np.abs(test - 0.2 * (train + test)) <= 1).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_training_and_test_digits_are_a_disjoint_cover_of_all(seed):
    data, source = load_digits(seed), sklearn.datasets.load_digits()
    labels = [*data.train_labels, *data.test_labels]
    images = np.concatenate([data.train_images, data.test_images])
    read = Counter((label, image.tobytes()) for label, image in zip(labels, images, strict=True))
    there = zip(source.target, source.images.astype(np.uint8), strict=True)
    assert read == Counter((label, image.tobytes()) for label, image in there)


def test_the_split_of_digits_is_a_function_of_the_seed():
    one, same, other = load_digits(0), load_digits(0), load_digits(1)
    np.testing.assert_array_equal(one.train_images, same.train_images)
    np.testing.assert_array_equal(one.test_labels, same.test_labels)
    assert (one.test_images != other.test_images).any()


# Dataset


def dataset(**changes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 4, 5, 3), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2], np.int32)
    parts = {"train_images": images, "train_labels": labels, "test_images": images[:2], "test_labels": labels[:2]}
    return Dataset(**{"name": "small", "num_classes": 3, "crop_padding": 0, "flip": False, **parts, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((6, 4, 5, 3))}, "small train: images must be uint8 .* not float64"),
        ({"train_images": np.zeros((6, 4, 5), np.uint8)}, r"small train: images must be uint8 \[N, height, width, "),
        ({"train_images": np.zeros((5, 4, 5, 3), np.uint8)}, r"with N labels, not uint8 .* with labels \(6,\)"),
        ({"test_images": np.zeros((2, 4, 5), np.uint8)}, "small test: images must be uint8"),
        ({"test_images": np.zeros((0, 4, 5, 3), np.uint8), "test_labels": np.zeros(0, np.int32)}, "small test: "),
        ({"num_classes": 2}, r"small train: labels must be in \[0, 2\)"),
        ({"test_labels": np.array([0, 3], np.int32)}, r"small test: labels must be in \[0, 3\)"),
        ({"test_labels": np.array([0, -1], np.int32)}, r"small test: labels must be in \[0, 3\)"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(changes, message):
    dataset()
    with pytest.raises(ValueError, match=message):
        dataset(**changes)


def test_channel_statistics_are_mean_and_deviation_of_the_training_images():
    for data in (load_digits(0), dataset()):
        mean, std = data.channel_statistics
        pixels = data.train_images.astype(np.float64)
        assert (mean.dtype, std.dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_a_constant_channel_can_be_divided_by():
    _, std = dataset(train_images=np.full((6, 4, 5, 3), 7, np.uint8)).channel_statistics
    np.testing.assert_allclose(std, 1e-3, rtol=1e-6)


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    images = np.array([[[[0, 10], [255, 30]]]], np.uint8)
    normalised = normalise(images, np.float32([5, 10]), np.float32([2, 5]))
    assert normalised.dtype == jnp.float32
    np.testing.assert_array_equal(normalised, [[[[-2.5, 0], [125, 4]]]])


# Order


jitted_order = jax.jit(worker_order, static_argnames=("count", "examples", "workers", "split"))


def orders(split, examples, workers, count, rounds, key=0):
    """What each worker reads in `rounds` calls of `count`: [workers, rounds * count]."""
    key = jax.random.key(key)
    sizes = {"count": count, "examples": examples, "workers": workers, "split": split}
    read = [[np.asarray(jitted_order(key, w, count * r, **sizes)) for r in range(rounds)] for w in range(workers)]
    assert read[0][0].dtype == np.int32
    return np.array(read).reshape(workers, -1)


# 105 examples by 3 workers, 15 or 5 an epoch: rounds that divide an epoch, are one, straddle two, and span several.
ROUNDS = [(1, 105), (5, 21), (7, 15), (35, 3)]


@pytest.mark.parametrize(("count", "rounds"), ROUNDS)
def test_shared_workers_read_every_example_once_an_epoch(count, rounds):
    epochs = orders("shared", 15, 3, count, rounds).reshape(3 * 7, 15)
    assert (np.sort(epochs) == np.arange(15)).all()


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("split", ["shared", "disjoint"])
def test_every_image_is_read_once_an_epoch_with_keys_of_any_implementation(implementation, split):
    key = jax.random.key(0, impl=implementation)
    sizes = {"count": 16, "examples": 100, "workers": 1, "split": split}
    read = np.concatenate([jitted_order(key, 0, first, **sizes) for first in range(0, 400, 16)])
    assert [len(set(epoch)) for epoch in read.reshape(4, 100).tolist()] == [100] * 4
    if implementation != "unsafe_rbg":
        ours = jitted_order(jax.random.key(0, impl="threefry2x32"), 0, 0, **sizes | {"count": 400})
        assert read.tolist() == ours.tolist()


@pytest.mark.parametrize(("count", "rounds"), ROUNDS)
def test_disjoint_workers_together_read_every_example_once_an_epoch(count, rounds):
    epochs = orders("disjoint", 15, 3, count, rounds).reshape(3, 21, 5).swapaxes(0, 1).reshape(21, 15)
    assert (np.sort(epochs) == np.arange(15)).all()


def test_disjoint_workers_read_different_parts_where_they_do_not_divide_the_examples_and_leave_none_out_for_good():
    parts = orders("disjoint", 17, 3, 5, 12).reshape(3, 12, 5).swapaxes(0, 1).reshape(12, 15)
    assert all(len(set(epoch)) == 15 for epoch in parts)
    assert set(parts.ravel()) == set(range(17))


@pytest.mark.parametrize("split", ["shared", "disjoint"])
@pytest.mark.parametrize(("count", "rounds"), ROUNDS)
def test_rounds_joined_are_one_long_call(split, count, rounds):
    np.testing.assert_array_equal(orders(split, 15, 3, count, rounds), orders(split, 15, 3, 105, 1))


@pytest.mark.parametrize(("split", "count"), [("shared", 60), ("disjoint", 30)])
def test_workers_epochs_and_keys_differ_in_their_order(split, count):
    one, same, other = (orders(split, 60, 2, count, 3, key) for key in (0, 0, 1))
    assert len({row.tobytes() for row in [*one.reshape(6, -1), *other.reshape(6, -1)]}) == 12
    np.testing.assert_array_equal(one, same)


# Augmentation

IMAGES = np.random.default_rng(0).integers(1, 256, (1000, 3, 4, 2), np.uint8)


def augmented(augmentation, images=IMAGES, key=0):
    drawn = augmentation.draw(jax.random.key(key), len(images))
    return np.asarray(augmentation.apply(images, drawn)), {name: np.asarray(value) for name, value in drawn.items()}


def test_without_padding_and_flip_images_stay_as_they_are():
    images, _ = augmented(Augmentation(padding=0, flip=False))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [1, 2])
def test_each_image_becomes_one_crop_of_its_zero_padded_self_and_each_crop_occurs(padding, flip):
    images, _ = augmented(Augmentation(padding, flip))
    assert images.shape == IMAGES.shape
    assert images.dtype == np.uint8
    seen = Counter()
    for before, after in zip(IMAGES, images, strict=True):
        padded = np.pad(before, ((padding, padding), (padding, padding), (0, 0)))
        corners = [(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
        crops = {
            (y, x, mirror): padded[y : y + 3, x : x + 4][:, :: -1 if mirror else 1]
            for y, x in corners
            for mirror in (False, True)[: 1 + flip]
        }
        (which,) = [which for which, crop in crops.items() if (crop == after).all()]
        seen[which] += 1
    assert set(seen) == set(crops)


def test_flip_alone_mirrors_about_half_of_the_images_and_leaves_the_others():
    images, drawn = augmented(Augmentation(padding=0, flip=True))
    mirror = drawn["mirror"]
    np.testing.assert_array_equal(images[mirror], IMAGES[mirror][:, :, ::-1])
    np.testing.assert_array_equal(images[~mirror], IMAGES[~mirror])
    # Five standard errors of a proportion of 1/2.
    assert abs(mirror.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(IMAGES))


def test_cutting_what_was_drawn_augments_the_part_as_the_whole():
    augmentation = Augmentation(padding=2, flip=True)
    whole, drawn = augmented(augmentation)
    part = augmentation.apply(IMAGES[100:150], {name: value[100:150] for name, value in drawn.items()})
    np.testing.assert_array_equal(part, whole[100:150])


def test_what_is_drawn_is_a_function_of_the_key():
    one, same, other = (augmented(Augmentation(1, True), key=key)[0] for key in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_tfds_data_set_without_tfds_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("loft_jax.data.load.find_spec", lambda name: None if name == "array_record" else "found")
    with pytest.raises(UserError, match=r"^data\.name=cifar10: .*\(array_record\); pip install 'loft_jax\[tfds\]', or"):
        load_dataset(Config(data={"name": "cifar10"}))
    assert load_dataset(Config()).name == "digits"
