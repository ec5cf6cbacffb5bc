"""A data set in one .npz file: read as it was written, and refused with what is wrong and where."""

import io
import os
import zipfile

import numpy as np
import pytest
from helpers.runs import SMALL, assert_same_state, config_of, opened
from PIL import Image

from loft_jax.config.config import Config
from loft_jax.data import memory
from loft_jax.data.arrays import load_arrays
from loft_jax.data.digits import load_digits
from loft_jax.data.facts import dataset_facts
from loft_jax.data.load import load_dataset
from loft_jax.data.memory import image_data
from loft_jax.errors import UserError
from loft_jax.retrain.retraining import Retraining
from loft_jax.storage.checkpoints import read_state
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.train.__main__ import run as train

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = np.array([2, 0, 1, 0, 1, 2])
ARRAYS = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:2] // 2, "test_labels": LABELS[:2]}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "png")
    return file.getvalue()


def as_files(images):
    """(files one after another, their ends)."""
    files = [png(image) for image in images]
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([len(file) for file in files])


FILES = {
    **{key: ARRAYS[key] for key in ("train_labels", "test_labels")},
    **dict(zip(("train_files", "train_ends"), as_files(ARRAYS["train_images"]), strict=True)),
    **dict(zip(("test_files", "test_ends"), as_files(ARRAYS["test_images"]), strict=True)),
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mine.npz"


def assert_is_the_data(data):
    assert (data.num_classes, data.crop_padding, data.flip, data.streamed) == (3, 0, True, False)
    for name, written in ARRAYS.items():
        read = getattr(data, name)
        np.testing.assert_array_equal(read, written)
        assert read.dtype == (np.uint8 if "images" in name else np.int32)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_were_written(path, save):
    save(path, **ARRAYS)
    data = load_dataset(Config(data={"name": "arrays", "data_dir": str(path)}))
    assert_is_the_data(data)
    assert data.name == "mine"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_may_be_compressed_by_any_method_of_zip(path, method):
    np.savez(path, **ARRAYS)
    with zipfile.ZipFile(path) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    assert_is_the_data(load_arrays(str(path)))


def test_image_files_are_decoded_once_and_give_the_same_data(path, monkeypatch):
    np.savez(path, **ARRAYS)
    pixels = load_arrays(str(path))
    np.savez(path, **FILES)
    files = load_arrays(str(path))
    assert_is_the_data(files)
    assert files.fingerprint == pixels.fingerprint
    monkeypatch.setattr("loft_jax.data.image_files._decode", None)
    again = load_arrays(str(path))
    assert_is_the_data(again)
    assert isinstance(again.train_images, np.memmap)


def test_grey_image_files_have_one_channel(path):
    arrays = dict(FILES)
    for split in ("train", "test"):
        arrays[f"{split}_files"], arrays[f"{split}_ends"] = as_files(ARRAYS[f"{split}_images"][..., :1])
    np.savez(path, **arrays)
    data = load_arrays(str(path))
    np.testing.assert_array_equal(data.train_images, IMAGES[..., :1])
    assert data.image_shape == (4, 5, 1)


def test_the_fingerprint_changes_with_any_array_and_not_with_the_file(path):
    prints = set()
    for name in ARRAYS:
        np.savez(path, **{**ARRAYS, name: np.roll(ARRAYS[name], 1)})
        prints.add(load_arrays(str(path)).fingerprint)
    np.savez(path, **ARRAYS, class_names=np.array(["a", "b", "c"]))
    as_it_was = load_arrays(str(path)).fingerprint
    assert len(prints | {as_it_was}) == 5
    np.savez_compressed(path, **ARRAYS)
    assert load_arrays(str(path)).fingerprint == as_it_was


def test_names_are_those_in_the_file(path):
    test_of_two = {**ARRAYS, "test_labels": np.array([0, 0])}
    np.savez(path, **test_of_two, name=np.array("cifar10"), class_names=np.array(["cat", "dog", "cow"]))
    data = load_arrays(str(path))
    assert (data.name, data.num_classes) == ("cifar10", 3)


def test_costs_and_plans_know_the_facts(path):
    np.savez(path, **ARRAYS)
    facts = dataset_facts(Config(data={"name": "arrays", "data_dir": str(path)}))
    assert (facts.image_shape, facts.num_classes, facts.examples, facts.test_examples) == ((4, 5, 3), 3, 6, 2)


def test_grey_alpha_16_bits_and_booleans_are_converted_and_said():
    labels = (ARRAYS["train_labels"], ARRAYS["test_labels"])

    def converted(images):
        data = image_data(images, labels[0], images[:2], labels[1])
        np.testing.assert_array_equal(data.test_images, data.train_images[:2])
        return data.train_images, data.loading_text

    opaque = np.full((6, 4, 5, 1), 9, np.uint8)
    for images, expected, said in (
        (IMAGES, IMAGES, ""),
        (IMAGES[..., 0], IMAGES[..., :1], ""),
        (np.concatenate([IMAGES, opaque], -1), IMAGES, "; alpha dropped"),
        (IMAGES.astype(np.uint16) * 257, IMAGES, "; 16 bits scaled to 8"),
        (IMAGES > 99, np.where(IMAGES > 99, 255, 0), "; true became 255"),
        (np.concatenate([IMAGES, opaque], -1).astype(np.uint16) << 8, IMAGES, "; alpha dropped; 16 bits scaled to 8"),
    ):
        read, text = converted(images)
        np.testing.assert_array_equal(read, expected)
        assert (read.dtype, text) == (np.uint8, said)


def test_names_of_the_classes_are_kept(path):
    np.savez(path, **ARRAYS, class_names=np.array(["cat", "dog", "cow"]))
    assert load_arrays(str(path)).class_names == ("cat", "dog", "cow")
    assert load_digits(0).class_names[7] == "7"


def test_a_setting_says_whether_images_are_mirrored(path):
    np.savez(path, **ARRAYS)
    found = {
        (name, flip): load_dataset(Config(data={"name": name, "flip": flip, "data_dir": where})).flip
        for name, where in (("digits", None), ("arrays", str(path)))
        for flip in (None, True, False)
    }
    assert [key for key, flip in found.items() if flip] == [("digits", True), ("arrays", None), ("arrays", True)]


class _Unpickled:
    def __reduce__(self):
        return (os.abort, ())


def changed(**arrays):
    return {name: value for name, value in {**ARRAYS, **arrays}.items() if value is not None}


def with_files(**arrays):
    return {name: value for name, value in {**FILES, **arrays}.items() if value is not None}


FLOATS = IMAGES / 255
HOLED = np.where(IMAGES.flat[0] == IMAGES, np.nan, FLOATS)
BAD = {
    "a missing array": (changed(train_labels=None), "holds no array train_labels; there are train_images, test_images"),
    "a misspelt array": (
        {**changed(test_images=None), "test_image": IMAGES},
        "holds no array test_images; did you mean test_image?",
    ),
    "nothing": ({}, "holds no array train_labels; there are nothing"),
    "objects": (
        changed(train_labels=np.array([_Unpickled()] * 6, object)),
        "train_labels holds Python objects, which are never unpickled",
    ),
    "floats": (changed(train_images=FLOATS), "train_images is float64; must be uint8"),
    "NaN": (changed(test_images=HOLED), "test_images is float64, with NaN; must be uint8"),
    "int images": (changed(train_images=IMAGES.astype(np.int64)), "train_images is int64; must be uint8"),
    "no axis": (changed(train_images=IMAGES[:, 0, 0, 0]), "has the shape (6,); must be [n, height, width, channels], "),
    "features and images": (
        changed(train_images=IMAGES[..., 0, 0]),
        "training images are 4, test images 4x5x3; must have one shape",
    ),
    "grey and colour": (
        changed(train_images=IMAGES[..., 0]),
        "training images are 4x5x1, test images 4x5x3; must have one shape",
    ),
    "no images": (changed(train_images=IMAGES[:0]), "train_images has the shape (0, 4, 5, 3); must be [n, "),
    "no pixels": (changed(test_images=IMAGES[:2, :0]), "test_images has the shape (2, 0, 5, 3)"),
    "too few images": (changed(train_images=IMAGES[:5]), "train_images has 5 images and train_labels 6 labels"),
    "two shapes": (changed(test_images=IMAGES[:2, :3]), "training images are 4x5x3, test images 3x5x3; must have one"),
    "no labels": (changed(test_labels=LABELS[:0]), "test_labels has the shape (0,); must be [n]"),
    "one-hot labels": (
        changed(train_labels=np.eye(3, dtype=int)[LABELS]),
        "train_labels has the shape (6, 3); must be",
    ),
    "multi-label": (
        changed(train_labels=np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]])),
        "train_labels is multi-label: its shape is (6, 3), and an image has up to 2 labels; must be [n], one label",
    ),
    "multi-label, in floats": (
        changed(test_labels=np.ones((2, 3), np.float32)),
        "test_labels is multi-label: its shape is (2, 3), and an image has up to 3 labels",
    ),
    "float labels": (changed(train_labels=LABELS / 1), "train_labels is float64; must be whole numbers"),
    "NaN labels": (
        changed(train_labels=np.where(LABELS == 1, np.nan, LABELS)),
        "train_labels is float64, with NaN at 2; must be whole numbers",
    ),
    "text labels": (changed(train_labels=LABELS.astype(str)), "train_labels is <U21; must be whole numbers"),
    "a negative label": (changed(train_labels=LABELS - 1), "train_labels holds the label -1 at 1; must be 0 to 1, as"),
    "negative labels": (changed(train_labels=-LABELS - 5), "train_labels holds the label -7 at 0; must be at least 0"),
    "a label of the test only": (
        changed(test_labels=np.array([0, 3])),
        "test_labels holds the label 3 at 1; must be 0 to 2, as train_labels say",
    ),
    "a label without an image": (
        changed(train_labels=LABELS * 2),
        "train_labels holds no label 1, and there are labels up to 4; must be 0 to the number of classes - 1",
    ),
    "labels from 1": (changed(train_labels=LABELS + 1), "train_labels holds no label 0, and there are labels up to 3"),
    "a huge label": (changed(train_labels=LABELS + 2**62), "train_labels holds no label 0, and there are"),
    "a label without a name": (
        {**ARRAYS, "class_names": np.array(["a", "b"])},
        "train_labels holds the label 2 at 0; must be 0 to 1, as class_names says",
    ),
    "a name without an image": (
        {**ARRAYS, "class_names": np.array(["a", "b", "c", "d"])},
        "train_labels holds no label 3, and there are labels up to 3",
    ),
    "a class name twice": ({**ARRAYS, "class_names": np.array(["a", "b", "a"])}, "class_names holds a twice"),
    "class numbers": ({**ARRAYS, "class_names": np.arange(3)}, "class_names is int64 (3,); must be text [classes]"),
    "a wrong name": ({**ARRAYS, "name": np.array("../x")}, "name is <U4 ../x; must be a text as cifar10"),
    "a name that is none": ({**ARRAYS, "name": np.arange(2)}, "name is int64 ''; must be a text as cifar10"),
    "pixels and files": (
        {**FILES, "train_images": IMAGES},
        "holds train_images and train_files; leave one of them out",
    ),
    "no ends": (with_files(train_ends=None), "holds no array train_ends"),
    "files that are none": (
        with_files(train_files=FILES["train_files"] // 2),
        "image 0 of train_files cannot be decode",
    ),
    "files as text": (
        with_files(train_files=np.array(["a.png"])),
        "train_files is <U5 (1,); must be uint8 [bytes]",
    ),
    "too few ends": (
        with_files(train_ends=FILES["train_ends"][:5]),
        "the ends of train_files are int64 (5,); must be 6",
    ),
    "ends that descend": (with_files(train_ends=FILES["train_ends"][::-1]), "the ends of train_files must ascend"),
    "ends that are cut": (with_files(train_files=FILES["train_files"][:-1]), "the ends of train_files must ascend"),
    "files of two sizes": (
        with_files(**dict(zip(("test_files", "test_ends"), as_files([IMAGES[0], IMAGES[1, :3]]), strict=True))),
        "image 1 of test_files is 3x5x3, and the first is 4x5x3; resize them to one size",
    ),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_arrays_that_are_no_data_set_are_refused(path, arrays, message):
    np.savez(path, **arrays)
    with pytest.raises(UserError) as caught:
        load_arrays(str(path))
    said = str(caught.value)
    assert said.startswith(f"data.data_dir={path}: ")
    assert message in said
    assert "\n" not in said


def test_a_file_that_is_no_npz_is_refused(path, tmp_path):
    def refusal(file):
        with pytest.raises(UserError) as caught:
            load_arrays(str(file))
        return str(caught.value).removeprefix(f"data.data_dir={file}: ")

    np.savez(path, **ARRAYS)
    assert refusal(tmp_path / "mind.npz") == f"no such file; did you mean {path}?"
    assert refusal(tmp_path / "nowhere/x.npz") == "no such file; give the path of an .npz file"
    assert refusal(tmp_path) == f"is a directory; give the .npz file itself, as {path}"
    for content in (b"", b"not a zip", b"PK\x03\x04", b"\x80\x04N.", path.read_bytes()[:-30], path.read_bytes()[:300]):
        (tmp_path / "broken.npz").write_bytes(content)
        assert refusal(tmp_path / "broken.npz").startswith("is no .npz file, or only a part of one (")
    np.save(tmp_path / "one.npy", IMAGES)
    assert refusal(tmp_path / "one.npy").startswith("holds a single array, not an .npz file of several")
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 255
    path.write_bytes(damaged)
    assert "the file is damaged, write it again" in refusal(path)


def test_more_pixels_than_a_device_holds_are_refused(path, monkeypatch):
    np.savez(path, **ARRAYS)
    monkeypatch.setattr(memory, "FITS_ON_DEVICE_BYTES", 100)
    with pytest.raises(UserError, match=r"GiB of pixels, and is kept on the device \(limit 0 GiB\); prepare"):
        load_arrays(str(path))


def test_a_run_on_packed_digits_equals_one_on_digits_and_is_not_resumed_on_other_data(path, tmp_path):
    digits = config_of(model=SMALL, data={"augment": False}, train={"rounds": 2})
    data = {"augment": False, "name": "arrays", "data_dir": str(path)}
    packed = config_of(model=SMALL, data=data, train={"rounds": 2})
    data = load_digits(digits.seed)
    arrays = {name: getattr(data, name) for name in ARRAYS}
    np.savez(path, **arrays)
    for name, config in {"digits": digits, "packed": packed}.items():
        summary = train(config, opened(tmp_path / name, config))
        assert summary["data"] == ("digits" if name == "digits" else "mine")
    states = [read_state(tmp_path / name / "checkpoints", 2) for name in ("digits", "packed")]
    assert_same_state(*states)
    (tmp_path / "packed/summary.json").unlink()
    np.savez(path, **(arrays | {"train_images": np.roll(data.train_images, 1)}))
    for command in (
        lambda: train(packed, opened(tmp_path / "packed", packed)),
        lambda: _retraining(tmp_path / "packed"),
    ):
        with pytest.raises(UserError, match=r"packed: was trained on other data \(fingerprint: "):
            command()


def _retraining(path):
    directory = RunDirectory(path)
    Retraining(directory, directory.read_config().data)


@pytest.mark.parametrize(("side", "padding"), [(6, 0), (8, 1), (28, 4), (32, 4), (64, 4)])
def test_small_images_are_padded_less_before_a_crop(side, padding):
    images, labels = np.zeros((2, side, side), np.uint8), np.array([0, 1])
    assert image_data(images, labels, images, labels).crop_padding == padding
