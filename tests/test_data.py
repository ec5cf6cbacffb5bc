"""Data sets as arrays, the order in which workers read them, augmentation, and TFDS without TensorFlow or network."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from PIL import Image

from loft_jax.config import Config
from loft_jax.data import load_dataset
from loft_jax.data import tfds as loader
from loft_jax.data.batches import Augmentation, normalise, worker_order
from loft_jax.data.dataset import Dataset
from loft_jax.data.digits import load_digits
from loft_jax.data.tfds import load_tfds
from loft_jax.errors import UserError

# Digits


def test_digits_are_1437_and_360_grey_images_of_ten_classes():
    data = load_dataset(Config())
    assert (data.train_images.shape, data.test_images.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (data.train_images.dtype, data.train_labels.dtype) == (np.uint8, np.int32)
    assert (data.test_images.dtype, data.test_labels.dtype) == (np.uint8, np.int32)
    assert (data.name, data.num_classes, data.crop_padding, data.flip) == ("digits", 10, 1, False)


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


def test_digits_are_read_from_no_directory():
    with pytest.raises(UserError, match=r"data\.data_dir: digits ships with scikit-learn.*leave it out"):
        load_dataset(Config(data={"data_dir": "/data"}))


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
        ({"num_classes": 2}, r"small train: labels must lie in \[0, 2\)"),
        ({"test_labels": np.array([0, 3], np.int32)}, r"small test: labels must lie in \[0, 3\)"),
        ({"test_labels": np.array([0, -1], np.int32)}, r"small test: labels must lie in \[0, 3\)"),
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


# TFDS: a data set that the test writes itself


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return io.BytesIO(file.getvalue())


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Images and labels given to its constructor, split by split."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, content, features, **kwargs):
        self._content, self._features = content, features
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self._features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(*content) for split, content in self._content.items()}

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": png(image), "label": int(label)}


def tiny_content(seed=0, splits=(("train", 12), ("test", 5)), shape=(8, 6, 3)):
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, 3, count)) for split, count in splits
    }


def prepare(directory, content, version="1.10.0", shape=(8, 6, 3), label=None):
    label = label or tfds.features.ClassLabel(num_classes=3)
    features = {"image": tfds.features.Image(shape=shape), "label": label}
    TinyImages.VERSION = tfds.core.Version(version)
    builder = TinyImages(content, features, data_dir=directory, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(directory) / "tiny_images" / version


def pairs(images, labels):
    """Image and label pairs whatever their order: TFDS shuffles when it writes."""
    return Counter((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        load_tfds(*arguments)
    return str(caught.value)


@pytest.mark.compat
@pytest.mark.parametrize("test_split", ["test", "validation"])
def test_a_tfds_data_set_is_read_pixel_by_pixel(tmp_path, cache, test_split):
    content = tiny_content(splits=(("train", 12), (test_split, 5)))
    prepare(tmp_path, content)
    data = load_tfds("tiny_images", str(tmp_path))
    assert (data.name, data.num_classes, data.crop_padding, data.flip) == ("tiny_images", 3, 4, True)
    assert pairs(data.train_images, data.train_labels) == pairs(*content["train"])
    assert pairs(data.test_images, data.test_labels) == pairs(*content[test_split])
    assert (data.train_images.dtype, data.train_labels.dtype) == (np.uint8, np.int32)


def test_test_is_preferred_to_validation(tmp_path, cache):
    content = tiny_content(splits=(("train", 3), ("validation", 4), ("test", 5)))
    prepare(tmp_path, content)
    data = load_tfds("tiny_images", str(tmp_path))
    assert pairs(data.test_images, data.test_labels) == pairs(*content["test"])


def test_more_images_than_are_decoded_at_once_are_all_read(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(loader, "_DECODE_CHUNK", 5)
    content = tiny_content()
    prepare(tmp_path, content)
    data = load_tfds("tiny_images", str(tmp_path))
    assert pairs(data.train_images, data.train_labels) == pairs(*content["train"])


def test_the_newest_version_is_read_and_the_default_directory_is_that_of_tfds(tmp_path, cache, monkeypatch):
    for seed, version in enumerate(("1.10.0", "1.9.0", "1.2.0")):
        prepare(tmp_path, tiny_content(seed), version)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    data = load_dataset(Config(data={"name": "tiny_images"}))
    assert pairs(data.train_images, data.train_labels) == pairs(*tiny_content(0)["train"])


def test_the_second_load_reads_the_cache_until_the_files_change(tmp_path, cache):
    prepare(tmp_path, tiny_content(0))
    first = load_tfds("tiny_images", str(tmp_path))
    labels_file = next((cache / "decoded").glob("tiny_images-train-*-labels.npy"))
    np.save(labels_file, (first.train_labels + 1) % 3)
    second = load_tfds("tiny_images", str(tmp_path))
    np.testing.assert_array_equal(second.train_labels, (first.train_labels + 1) % 3)
    np.testing.assert_array_equal(second.train_images, first.train_images)
    assert isinstance(second.train_images, np.memmap)
    assert [p.suffix for p in (cache / "decoded").iterdir()] == [".npy"] * 4

    files = list((tmp_path / "tiny_images").rglob("*.array_record*"))
    for file in files:
        os.utime(file, ns=(0, 0))
    np.testing.assert_array_equal(load_tfds("tiny_images", str(tmp_path)).train_labels, first.train_labels)


def test_a_cache_that_cannot_be_written_is_gone_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path / "file"))
    content = tiny_content()
    prepare(tmp_path, content)
    data = load_tfds("tiny_images", str(tmp_path))
    assert pairs(data.train_images, data.train_labels) == pairs(*content["train"])


def test_tensorflow_is_not_imported(tmp_path, cache):
    prepare(tmp_path, tiny_content())
    load_tfds("tiny_images", str(tmp_path))
    assert "tensorflow" not in sys.modules


def test_images_of_mixed_sizes_are_refused(tmp_path, cache):
    prepare(tmp_path, tiny_content(), shape=(None, None, 3))
    assert (
        refusal("tiny_images", str(tmp_path))
        == "data.name=tiny_images: its images are uint8 of shape (None, None, 3); only uint8 images of one size can be "
        "kept on the device"
    )


def test_other_file_formats_are_refused_with_the_way_out(tmp_path, cache):
    info = prepare(tmp_path, tiny_content()) / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    said = refusal("tiny_images", str(tmp_path))
    assert said.startswith(f"data.name=tiny_images: {info.parent} holds tfrecord files; prepare the data set again")
    assert "file_format='array_record'" in said


def test_a_data_set_without_classes_is_refused(tmp_path, cache):
    prepare(tmp_path, tiny_content(), label=tfds.features.Scalar(np.int32))
    assert "has no features `image` and `label`" in refusal("tiny_images", str(tmp_path))


def test_a_data_set_without_a_test_split_is_refused(tmp_path, cache):
    prepare(tmp_path, tiny_content(splits=(("train", 3),)))
    said = refusal("tiny_images", str(tmp_path))
    assert "needs the splits train and test (or validation), has ['train']" in said


def test_a_data_set_larger_than_a_device_holds_is_refused_before_it_is_decoded(tmp_path, cache, monkeypatch):
    prepare(tmp_path, tiny_content())
    monkeypatch.setattr(loader, "_FITS_ON_DEVICE_BYTES", 17 * 8 * 6 * 3 - 1)
    assert "do not fit on the device" in refusal("tiny_images", str(tmp_path))
    assert not cache.exists()
    monkeypatch.setattr(loader, "_FITS_ON_DEVICE_BYTES", 17 * 8 * 6 * 3)
    load_tfds("tiny_images", str(tmp_path))


def test_a_damaged_data_set_is_refused(tmp_path, cache):
    (prepare(tmp_path, tiny_content()) / "features.json").write_text("{")
    assert f"{tmp_path}/tiny_images/1.10.0 cannot be read as a TFDS data set" in refusal("tiny_images", str(tmp_path))


def test_a_test_split_without_labels_is_refused(tmp_path, cache):
    content = tiny_content()
    # TFDS writes -1 where labels are withheld.
    content["test"] = (content["test"][0], np.full(5, -1))
    prepare(tmp_path, content)
    assert "labels" in refusal("tiny_images", str(tmp_path))


# TFDS: what is not there

REFUSED_WITHOUT_NETWORK = """
import os, socket, sys
def refuse(*_, **__):
    os._exit(99)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from loft_jax.data.tfds import load_tfds
from loft_jax.errors import UserError
try:
    load_tfds(sys.argv[1], sys.argv[2])
except UserError as error:
    print(error)
"""


def refused_without_network(name, directory):
    """What is said, in a process that dies with code 99 when it looks for a network."""
    # A hang is what this guards against; the limit measures nothing.
    done = subprocess.run(
        [sys.executable, "-c", REFUSED_WITHOUT_NETWORK, name, str(directory)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifr10", "did you mean cifar10?"),
        ("digit", "did you mean digits?"),
        ("qqqqqqqq", "use digits or a name of tensorflow.org/datasets/catalog"),
    ],
)
def test_an_unknown_data_set_is_refused_with_the_nearest_name_and_what_is_prepared(tmp_path, name, hint):
    prepare(tmp_path, tiny_content())
    said = refused_without_network(name, tmp_path)
    known = f"known here: digits, and prepared under {tmp_path}: tiny_images"
    assert said == f"data.name={name}: no such data set; {hint}; {known}\n"


@pytest.mark.parametrize("name", ["cifar100", "imagenet_resized/32x32"])
def test_a_data_set_that_is_not_prepared_is_refused_with_the_command_that_prepares_it(tmp_path, name):
    said = refused_without_network(name, tmp_path / "nowhere")
    assert said.startswith(f"data.name={name}: not prepared under data.data_dir={tmp_path}/nowhere; prepare it with\n")
    command = (
        f"tfds.builder('{name}', data_dir='{tmp_path}/nowhere', file_format='array_record').download_and_prepare()"
    )
    assert f'python -c "import tensorflow_datasets as tfds; {command}"\n' in said
    assert said.endswith(f"prepared under {tmp_path}/nowhere: nothing\n")


# TFDS: CIFAR-10

CIFAR_DIRECTORY = os.environ.get("LOFT_JAX_TEST_DATA")
needs_cifar = pytest.mark.skipif(
    not CIFAR_DIRECTORY, reason="LOFT_JAX_TEST_DATA names no TFDS data directory that holds cifar10"
)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOFT_JAX_CACHE", str(tmp_path_factory.mktemp("cifar")))
        yield load_tfds("cifar10", CIFAR_DIRECTORY), load_tfds("cifar10", CIFAR_DIRECTORY)


@needs_cifar
def test_cifar10_has_5000_and_1000_images_of_each_class(cifar):
    data, _ = cifar
    assert (data.train_images.shape, data.test_images.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert np.bincount(data.train_labels).tolist() == [5000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10


@needs_cifar
def test_cifar10_has_the_published_channel_means_and_deviations(cifar):
    mean, std = cifar[0].channel_statistics
    # A JPEG re-encoding, where that is what the directory holds, moves a mean by 2e-4 and a deviation by 2e-3.
    np.testing.assert_allclose(mean / 255, [0.4914, 0.4822, 0.4465], atol=1e-3)
    np.testing.assert_allclose(std / 255, [0.2470, 0.2435, 0.2616], atol=3e-3)


@needs_cifar
def test_cifar10_is_the_same_from_the_cache(cifar):
    decoded, cached = cifar
    assert not isinstance(decoded.train_images, np.memmap)
    assert isinstance(cached.train_images, np.memmap)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(decoded, name), getattr(cached, name))
