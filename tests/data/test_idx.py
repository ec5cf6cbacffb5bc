"""A data set in IDX files: read as it was written, and refused with the file and what is wrong with it."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from loft_jax.config.config import Config
from loft_jax.data.facts import dataset_facts
from loft_jax.data.idx import load_idx
from loft_jax.data.load import load_dataset
from loft_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 5), np.uint8)
LABELS = np.array([2, 0, 1, 0, 1, 2], np.uint8)
CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(array):
    """An array as an IDX file, big-endian."""
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


FILES = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(IMAGES[:2] // 2),
    "t10k-labels-idx1-ubyte": idx(LABELS[:2]),
}


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    return path


def write(directory, files, ending="", mark="-", pack=bytes):
    for name, content in files.items():
        (directory / (name.replace("-idx", f"{mark}idx") + ending)).write_bytes(pack(content))


@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), ("", gzip.compress)])
@pytest.mark.parametrize("mark", ["-", "."])
def test_files_are_read_as_they_were_written(directory, ending, pack, mark):
    write(directory, FILES, ending, mark, pack)
    data = load_dataset(Config(data={"name": "idx", "data_dir": str(directory)}))
    for name, expected in {
        "train_images": IMAGES[..., None],
        "train_labels": LABELS,
        "test_images": IMAGES[:2, ..., None] // 2,
        "test_labels": LABELS[:2],
    }.items():
        read = getattr(data, name)
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == (np.uint8 if "images" in name else np.int32)
    assert (data.name, data.num_classes, data.flip, data.crop_padding, data.streamed) == ("mine", 3, True, 0, False)
    facts = dataset_facts(Config(data={"name": "idx", "data_dir": str(directory)}))
    assert (facts.image_shape, facts.examples, facts.test_examples) == ((4, 5, 1), 6, 2)


def test_colour_images_and_wide_labels_are_read(directory):
    colour = RNG.integers(0, 256, (6, 4, 5, 3), np.uint8)
    files = {
        "train-images-idx4-ubyte": idx(colour),
        "train-labels-idx1-ubyte": idx(LABELS.astype(np.int32)),
        "test-images-idx4-ubyte": idx(colour[:1]),
        "test-labels-idx1-ubyte": idx(LABELS[:1].astype(np.int16)),
    }
    write(directory, files)
    data = load_idx(str(directory))
    np.testing.assert_array_equal(data.train_images, colour)
    np.testing.assert_array_equal(data.train_labels, LABELS)


IMAGES_FILE, LABELS_FILE = list(FILES)[:2]
BAD = {
    "a missing file": ({LABELS_FILE: None}, f"holds no {LABELS_FILE}, also not as .gz; did you mean t10k-labels-idx"),
    "nothing": (dict.fromkeys(FILES), f"holds no {IMAGES_FILE}, also not as .gz; there is nothing"),
    "another format": ({IMAGES_FILE: b"\x89PNG" + bytes(99)}, f"{IMAGES_FILE} is no IDX file: it begins with 89 50 4e"),
    "an unknown dtype": (
        {IMAGES_FILE: b"\0\0\x07\3" + bytes(99)},
        f"{IMAGES_FILE} is no IDX file: it begins with 00 0",
    ),
    "an empty file": ({IMAGES_FILE: b""}, f"{IMAGES_FILE} is no IDX file: it begins with nothing"),
    "half a header": (
        {IMAGES_FILE: FILES[IMAGES_FILE][:9]},
        f"{IMAGES_FILE} has 9 bytes, and no header fits; the file",
    ),
    "a truncated file": (
        {IMAGES_FILE: FILES[IMAGES_FILE][:-1]},
        f"{IMAGES_FILE} has 135 bytes, and its header, of 6x4x5 uint8, says 136; the file is damaged, get it again",
    ),
    "too long a file": ({LABELS_FILE: FILES[LABELS_FILE] + b"0"}, f"{LABELS_FILE} has 15 bytes, and its header, of 6"),
    "a truncated gzip file": (
        {IMAGES_FILE: gzip.compress(FILES[IMAGES_FILE])[:-20]},
        f"{IMAGES_FILE} cannot be read (Compressed file ended",
    ),
    "a damaged gzip file": (
        {IMAGES_FILE: gzip.compress(FILES[IMAGES_FILE])[:-8] + bytes(8)},
        f"{IMAGES_FILE} cannot be read (CRC check failed",
    ),
    "labels instead of images": (
        {IMAGES_FILE: idx(LABELS)},
        "train_images has the shape (6,); must be [n, height, wid",
    ),
    "images instead of labels": ({LABELS_FILE: idx(IMAGES)}, "train_labels has the shape (6, 4, 5); must be [n]"),
    "float images": ({IMAGES_FILE: idx(IMAGES / 255)}, "train_images is float64; must be uint8"),
    "too few labels": (
        {LABELS_FILE: idx(LABELS[:5])},
        "train_images has 6 images and train_labels 5 labels; must be as",
    ),
    "labels from 1": (
        {LABELS_FILE: idx(LABELS + np.uint8(1))},
        "train_labels holds no label 0, and there are labels up",
    ),
}


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD)
def test_files_that_are_no_data_set_are_refused(directory, files, message):
    write(directory, {name: content for name, content in {**FILES, **files}.items() if content is not None})
    with pytest.raises(UserError) as caught:
        load_idx(str(directory))
    said = str(caught.value)
    assert said.startswith(f"data.data_dir={directory}: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "no such directory"), ("file", "is a file; give the directory")]
)
def test_what_is_no_directory_is_refused(tmp_path, name, message):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=f": {message}"):
        load_idx(str(tmp_path / name))


def test_a_directory_that_cannot_be_read_is_refused(directory, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(directory), "iterdir", forbidden)
    with pytest.raises(UserError, match=f"data.data_dir={directory}: cannot be read .Permission denied."):
        load_idx(str(directory))


FASHION = Path(os.environ.get("LOFT_JAX_TEST_DATA") or "nowhere").parent / "fashion-mnist"


@pytest.mark.skipif(
    not FASHION.is_dir(), reason="LOFT_JAX_TEST_DATA names no directory that has fashion-mnist beside it"
)
def test_fashion_mnist_has_6000_and_1000_images_of_each_class():
    data = load_idx(str(FASHION))
    assert (data.train_images.shape, data.test_images.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    mean, std = data.channel_statistics
    # The published mean and deviation.
    np.testing.assert_allclose([mean[0] / 255, std[0] / 255], [0.2860, 0.3530], atol=1e-4)
