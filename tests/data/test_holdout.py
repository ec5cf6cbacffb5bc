"""Images held out: each class gives its part, drawn by the seed; the rest is trained on."""

import numpy as np
import pytest
from helpers.tiny import config as tiny_config
from hypothesis import given, strategies as st

from loft_jax.config.config import Config
from loft_jax.data import load as loader
from loft_jax.data.digits import load_digits
from loft_jax.data.facts import Facts, data_identity, dataset_facts
from loft_jax.data.holdout import draw_held_out
from loft_jax.data.load import load_dataset
from loft_jax.errors import UserError


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**31 - 1), st.data())
def test_each_class_gives_its_share_and_keeps_an_example(sizes, seed, data):
    if sum(sizes) == len(sizes):
        return
    count = data.draw(st.integers(1, sum(sizes) - len(sizes)))
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    held = draw_held_out(labels, count, seed)
    given_by = np.bincount(labels[held] // 3, minlength=len(sizes))
    assert held.sum() == count
    assert (given_by < sizes).all()
    share = np.array(sizes) * count / sum(sizes)
    # Where a class cannot give its share, others give more.
    if (np.ceil(share) < sizes).all():
        assert (np.abs(given_by - share) < 1).all()
    np.testing.assert_array_equal(held, draw_held_out(labels, count, seed))


def test_the_draw_is_a_function_of_the_seed():
    labels = np.arange(100) % 10
    draws = {draw_held_out(labels, 50, seed).tobytes() for seed in range(5)}
    assert len(draws) == 5


@pytest.mark.parametrize(("amount", "held"), [(0.1, 144), (200, 200), (1, 1)])
def test_training_and_validation_images_are_the_training_images_of_before(amount, held):
    data, whole = load_dataset(Config(seed=3, data={"validation": amount})), load_digits(3)
    assert (data.examples, data.validation_examples) == (1437 - held, held)
    images = np.concatenate([data.train_images, data.validation_images])
    labels = np.concatenate([data.train_labels, data.validation_labels])
    parts = zip(labels, map(bytes, images), strict=True)
    assert sorted(parts) == sorted(zip(whole.train_labels, map(bytes, whole.train_images), strict=True))
    np.testing.assert_array_equal(data.test_images, whole.test_images)
    np.testing.assert_array_equal(data.test_labels, whole.test_labels)


def test_nothing_is_held_out_by_default():
    assert (load_dataset(Config()).validation_images, load_dataset(Config()).validation_examples) == (None, 0)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (1428, "data.validation=1428: 1428 of 1437 images cannot be held out, because each of 10 classes keeps one; "
         "hold out at most 1427"),
        (0.9999, "data.validation=0.9999: 1437 of 1437 images cannot be held out"),
        (0.0001, "data.validation=0.0001: of 1437 images this is none; hold out a larger share"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_out_is_refused(amount, message):
    with pytest.raises(UserError) as caught:
        load_dataset(Config(data={"validation": amount}))
    assert str(caught.value).startswith(message)


def test_facts_and_identity_count_what_is_trained_on():
    settings = Config(data={"validation": 100})
    facts, identity = dataset_facts(settings), data_identity(load_dataset(settings))
    assert (facts.examples, facts.validation_examples, facts.test_examples) == (1337, 100, 360)
    assert [identity[key] for key in ("training_images", "validation_images", "test_images")] == [1337, 100, 360]
    assert "validation_images" not in data_identity(load_dataset(Config()))
    assert identity["class_names"] == list("0123456789")
    assert facts.device_bytes(2, 1) == (1337 + 50 + 180) * (64 + 4)
    known = dataset_facts(Config(data={"name": "cifar10", "validation": 0.1}))
    assert (known.examples, known.validation_examples, known.test_examples) == (45_000, 5000, 10_000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"validation": 0.1},
            "data.validation=0.1: placeholder is streamed, and images are held out only of data that",
        ),
        ({"flip": True}, "data.flip=true: placeholder is streamed, which decides about it; leave data.flip out"),
    ],
)
def test_streamed_data_have_no_such_settings(monkeypatch, settings, message):
    streamed = Facts((8, 8, 3), 2, 100, 10, streamed=True).placeholder()
    monkeypatch.setattr(loader, "_load", lambda config: streamed)
    assert load_dataset(tiny_config()) is streamed
    with pytest.raises(UserError) as caught:
        load_dataset(Config(data=settings))
    assert str(caught.value).startswith(message)


def test_facts_of_known_data_that_are_streamed_are_refused():
    with pytest.raises(UserError, match=r"data\.validation=0\.1: imagenet2012 is streamed"):
        dataset_facts(Config(data={"name": "imagenet2012", "validation": 0.1}))
