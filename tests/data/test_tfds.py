"""Data sets that TFDS has prepared: read without TensorFlow, cached, and refused with the way out."""

import ast
import json
import os
import shlex
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.prepared import load, prepare, tiny_content

from loft_jax.config.config import Config
from loft_jax.data import tfds as loader
from loft_jax.data.load import load_dataset
from loft_jax.data.streaming.stored import StoredImages
from loft_jax.errors import UserError


def pairs(images, labels):
    """Image and label pairs whatever their order: TFDS shuffles when it writes."""
    return Counter((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refusal(name, directory, settings=None):
    with pytest.raises(UserError) as caught:
        load(name, directory, **(settings or {}))
    return str(caught.value)


@pytest.mark.compat
@pytest.mark.parametrize("test_split", ["test", "validation"])
def test_a_tfds_data_set_is_read_pixel_by_pixel(tmp_path, cache, test_split):
    content = tiny_content(splits=(("train", 12), (test_split, 5)))
    prepare(tmp_path, content)
    data = load("tiny_images", tmp_path)
    assert (data.name, data.num_classes, data.crop_padding, data.flip) == ("tiny_images", 3, 4, True)
    assert pairs(data.train_images, data.train_labels) == pairs(*content["train"])
    assert pairs(data.test_images, data.test_labels) == pairs(*content[test_split])
    assert (data.train_images.dtype, data.train_labels.dtype) == (np.uint8, np.int32)


def test_test_is_preferred_to_validation(tmp_path, cache):
    content = tiny_content(splits=(("train", 3), ("validation", 4), ("test", 5)))
    prepare(tmp_path, content)
    data = load("tiny_images", tmp_path)
    assert pairs(data.test_images, data.test_labels) == pairs(*content["test"])


def test_more_images_than_are_decoded_at_once_are_all_read(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(loader, "_DECODE_CHUNK", 5)
    content = tiny_content()
    prepare(tmp_path, content)
    data = load("tiny_images", tmp_path)
    assert pairs(data.train_images, data.train_labels) == pairs(*content["train"])


def test_the_newest_version_is_read_and_the_default_directory_is_that_of_tfds(tmp_path, cache, monkeypatch):
    for seed, version in enumerate(("1.10.0", "1.9.0", "1.2.0")):
        prepare(tmp_path, tiny_content(seed), version)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    data = load_dataset(Config(data={"name": "tiny_images"}))
    assert pairs(data.train_images, data.train_labels) == pairs(*tiny_content(0)["train"])


def test_the_second_load_reads_the_cache_until_the_files_change(tmp_path, cache):
    prepare(tmp_path, tiny_content(0))
    first = load("tiny_images", tmp_path)
    second = load("tiny_images", tmp_path)
    assert isinstance(second.train_images, np.memmap)
    np.testing.assert_array_equal(second.train_images, first.train_images)
    np.testing.assert_array_equal(second.train_labels, first.train_labels)
    labels_file = next((cache / "decoded").glob("tiny_images-train-*-labels.npy"))
    np.save(labels_file, (first.train_labels + 1) % 3)
    third = load("tiny_images", tmp_path)
    np.testing.assert_array_equal(third.train_labels, first.train_labels, err_msg="others are not trained on")
    assert [p.suffix for p in (cache / "decoded").iterdir()] == [".npy"] * 4

    files = list((tmp_path / "tiny_images").rglob("*.array_record*"))
    for file in files:
        os.utime(file, ns=(0, 0))
    np.testing.assert_array_equal(load("tiny_images", tmp_path).train_labels, first.train_labels)


def test_a_cache_that_cannot_be_written_is_gone_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path / "file"))
    content = tiny_content()
    prepare(tmp_path, content)
    data = load("tiny_images", tmp_path)
    assert pairs(data.train_images, data.train_labels) == pairs(*content["train"])


def test_tensorflow_is_not_imported(tmp_path, cache):
    prepare(tmp_path, tiny_content())
    load("tiny_images", tmp_path)
    assert "tensorflow" not in sys.modules


def test_images_of_mixed_sizes_are_streamed_and_refused_on_the_device(tmp_path, cache):
    prepare(tmp_path, tiny_content(), shape=(None, None, 3))
    data = load("tiny_images", tmp_path, image_size=7)
    assert (data.streamed, data.image_shape, data.crop_padding, data.flip) == (True, (7, 7, 3), 0, False)
    assert (
        refusal("tiny_images", tmp_path, {"loading": "device"})
        == "data.loading=device: tiny_images has images of mixed sizes, which can only be streamed; use stream or auto"
    )


def test_other_file_formats_are_refused_with_the_way_out(tmp_path, cache):
    info = prepare(tmp_path, tiny_content()) / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    said = refusal("tiny_images", tmp_path)
    assert said.startswith(f"data.name=tiny_images: {info.parent} holds tfrecord files; prepare the data set again")
    assert "file_format='array_record'" in said


def test_a_data_set_without_classes_is_refused(tmp_path, cache):
    prepare(tmp_path, tiny_content(), label=tfds.features.Scalar(np.int32))
    assert "has no features `image` and `label`" in refusal("tiny_images", tmp_path)


def test_a_data_set_of_several_labels_an_image_is_called_multi_label(tmp_path, cache):
    images = {split: (images, [[0, 2]] * len(images)) for split, (images, _) in tiny_content().items()}
    prepare(tmp_path, images, label=tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)))
    assert "is multi-label: its feature `label` holds several labels of an image" in refusal("tiny_images", tmp_path)


def test_a_data_set_without_a_test_split_is_refused(tmp_path, cache):
    prepare(tmp_path, tiny_content(splits=(("train", 3),)))
    said = refusal("tiny_images", tmp_path)
    assert "needs the splits train and test (or validation), has ['train']" in said


def test_a_data_set_larger_than_a_device_holds_is_streamed(tmp_path, cache, monkeypatch):
    prepare(tmp_path, tiny_content())
    monkeypatch.setattr("loft_jax.data.dataset.FITS_ON_DEVICE_BYTES", 17 * 8 * 6 * 3 - 1)
    assert load("tiny_images", tmp_path).streamed
    assert "which do not fit on the device" in refusal("tiny_images", tmp_path, {"loading": "device"})
    assert not cache.exists()
    monkeypatch.setattr("loft_jax.data.dataset.FITS_ON_DEVICE_BYTES", 17 * 8 * 6 * 3)
    assert not load("tiny_images", tmp_path).streamed
    assert load("tiny_images", tmp_path, loading="stream").streamed


def test_the_labelled_validation_split_is_taken_where_the_test_split_has_no_labels(tmp_path, cache):
    content = tiny_content(splits=(("train", 3), ("validation", 4), ("test", 5)))
    content["test"] = (content["test"][0], np.full(5, -1))
    prepare(tmp_path, content)
    data = load("tiny_images", tmp_path)
    assert pairs(data.test_images, data.test_labels) == pairs(*content["validation"])


def test_a_damaged_data_set_is_refused(tmp_path, cache):
    (prepare(tmp_path, tiny_content()) / "features.json").write_text("{")
    assert f"{tmp_path}/tiny_images/1.10.0 cannot be read as a TFDS data set" in refusal("tiny_images", tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_and_missing_files_are_refused(split, tmp_path, cache):
    directory = prepare(tmp_path, tiny_content())
    (shard,) = directory.glob(f"*-{split}.array_record*")
    content = shard.read_bytes()
    shard.write_bytes(content[:1000] + bytes(byte ^ 255 for byte in content[1000:1050]) + content[1050:])
    said = refusal("tiny_images", tmp_path)
    assert said.startswith("data.name=tiny_images: ")
    assert said.endswith("; prepare the data set again")
    assert "\n" not in said
    shard.unlink()
    assert "No such file or directory" in refusal("tiny_images", tmp_path)


def test_a_test_split_without_labels_is_refused(tmp_path, cache):
    content = tiny_content()
    # TFDS writes -1 where labels are withheld.
    content["test"] = (content["test"][0], np.full(5, -1))
    prepare(tmp_path, content)
    assert "labels" in refusal("tiny_images", tmp_path)


# TFDS: what is not there

REFUSED_WITHOUT_NETWORK = """
import os, socket, sys
def refuse(*_, **__):
    os._exit(99)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from loft_jax.data.tfds import load_tfds
from loft_jax.errors import UserError
from loft_jax.config.data import Data
try:
    load_tfds(Data(name=sys.argv[1], data_dir=sys.argv[2]))
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
        ("tiny_imges", "did you mean tiny_images?"),  # what is prepared, before tiny_imagenet and its like
        pytest.param("digit", "did you mean digits?", marks=pytest.mark.full),
        pytest.param("qqqqqqqq", "use digits or a name of tensorflow.org/datasets/catalog", marks=pytest.mark.full),
    ],
)
def test_an_unknown_data_set_is_refused_with_the_nearest_name_and_what_is_prepared(tmp_path, name, hint):
    prepare(tmp_path, tiny_content())
    said = refused_without_network(name, tmp_path)
    known = f"known here: digits, and prepared under {tmp_path}: tiny_images"
    assert said == f"data.name={name}: no such data set; {hint}; {known}\n"


@pytest.mark.parametrize("name", ["cifar100", pytest.param("imagenet_resized/32x32", marks=pytest.mark.full)])
def test_a_data_set_that_is_not_prepared_is_refused_with_the_command_that_prepares_it(tmp_path, name):
    said = refused_without_network(name, tmp_path / "nowhere")
    assert said.startswith(f"data.name={name}: not prepared under data.data_dir={tmp_path}/nowhere; prepare it with\n")
    command = (
        f"tfds.builder('{name}', data_dir='{tmp_path}/nowhere', file_format='array_record').download_and_prepare()"
    )
    assert f'python -c "import tensorflow_datasets as tfds; {command}"\n' in said
    assert said.endswith(f"prepared under {tmp_path}/nowhere: nothing\n")


@pytest.mark.full
@pytest.mark.parametrize("directory", ["it's here", 'say "$HOME"', "a`b"])
def test_the_command_that_prepares_a_data_set_can_be_pasted(directory, tmp_path):
    said = refused_without_network("cifar100", tmp_path / directory)
    python, option, program = shlex.split(said.split("\n")[1])
    assert (python, option) == ("python", "-c")
    (call,) = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call) and node.args]
    assert {key.arg: key.value.value for key in call.keywords}["data_dir"] == str(tmp_path / directory)


# TFDS: CIFAR-10

CIFAR_DIRECTORY = os.environ.get("LOFT_JAX_TEST_DATA")
needs_cifar = pytest.mark.skipif(
    not CIFAR_DIRECTORY, reason="LOFT_JAX_TEST_DATA names no TFDS data directory that holds cifar10"
)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOFT_JAX_CACHE", str(tmp_path_factory.mktemp("cifar")))
        yield load("cifar10", CIFAR_DIRECTORY), load("cifar10", CIFAR_DIRECTORY)


@pytest.mark.full
@needs_cifar
def test_cifar10_has_5000_and_1000_images_of_each_class(cifar):
    data, _ = cifar
    assert (data.train_images.shape, data.test_images.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert np.bincount(data.train_labels).tolist() == [5000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10


@needs_cifar
@pytest.mark.full
def test_cifar10_has_the_published_channel_means_and_deviations(cifar):
    mean, std = cifar[0].channel_statistics
    # A JPEG re-encoding, where that is what the directory holds, moves a mean by 2e-4 and a deviation by 2e-3.
    np.testing.assert_allclose(mean / 255, [0.4914, 0.4822, 0.4465], atol=1e-3)
    np.testing.assert_allclose(std / 255, [0.2470, 0.2435, 0.2616], atol=3e-3)


@needs_cifar
@pytest.mark.full
def test_cifar10_is_the_same_from_the_cache(cifar):
    decoded, cached = cifar
    assert not isinstance(decoded.train_images, np.memmap)
    assert isinstance(cached.train_images, np.memmap)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(decoded, name), getattr(cached, name))


def test_a_label_past_the_last_class_is_refused(tmp_path):
    directory = prepare(tmp_path, tiny_content())
    stored = StoredImages("tiny_images", str(directory), "train", (8, 6, 3), 2, mixed=False)
    with pytest.raises(UserError, match="of split train has label 2, not one of 0 to 1; only labelled images"):
        stored.read(range(12), np.empty((12, 8, 6, 3), np.uint8), np.empty(12, np.int32))


def test_images_of_another_type_are_refused(tmp_path, cache):
    features = prepare(tmp_path, tiny_content()) / "features.json"
    features.write_text(features.read_text().replace("uint8", "uint16"))
    assert "its images are uint16 of shape (8, 6, 3); use a data set of uint8 images" in refusal(
        "tiny_images", tmp_path
    )


@pytest.mark.parametrize(("stored", "read"), [(1, 1), (3, 3), (4, 3)])
def test_cropped_images_have_one_channel_or_three(stored, read, tmp_path, cache):
    content = tiny_content(shape=(8, 6) if stored == 1 else (8, 6, stored))
    prepare(tmp_path, content, shape=(None, None, stored))
    data = load("tiny_images", tmp_path, image_size=7)
    assert data.image_shape == (7, 7, read)
    images, labels = np.empty((1, 7, 7, read), np.uint8), np.empty(1, np.int32)
    data.train.read([0], images, labels)


def test_a_data_set_that_is_prepared_with_a_config_is_refused_without_it(tmp_path):
    for size in ("32x32", "8x8"):
        (tmp_path / f"imagenet_resized/{size}/0.1.0").mkdir(parents=True)
        (tmp_path / f"imagenet_resized/{size}/0.1.0/dataset_info.json").touch()
    assert refusal("imagenet_resized", tmp_path).startswith(
        "data.name=imagenet_resized: is prepared with a config; use imagenet_resized/32x32 or imagenet_resized/8x8; "
    )
