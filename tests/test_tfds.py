"""Data sets that TFDS has prepared: read without TensorFlow, cached, and refused with the way out."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from loft_jax.config import Config
from loft_jax.data import load_dataset
from loft_jax.data import tfds as loader
from loft_jax.data.tfds import load_tfds
from loft_jax.errors import UserError

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
    monkeypatch.setattr(loader, "FITS_ON_DEVICE_BYTES", 17 * 8 * 6 * 3 - 1)
    assert "do not fit on the device" in refusal("tiny_images", str(tmp_path))
    assert not cache.exists()
    monkeypatch.setattr(loader, "FITS_ON_DEVICE_BYTES", 17 * 8 * 6 * 3)
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
