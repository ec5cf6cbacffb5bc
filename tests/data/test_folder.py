"""A data set of image files in folders: read as Pillow reads each file, and refused with the folder or file."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from loft_jax.config.config import Config
from loft_jax.config.data import Data
from loft_jax.data import folder_images, memory
from loft_jax.data.folder import load_folder
from loft_jax.data.load import load_dataset
from loft_jax.data.streaming.decode import middle_crop
from loft_jax.errors import UserError

RNG = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "pets"
    path.mkdir()
    return path


def write(root, images, **options):
    """Write {path: pixels, a PIL image, or bytes}."""
    for name, image in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)


def load(root, **settings):
    return load_folder(Data(name="folder", data_dir=str(root), **settings))


TREE = {
    f"{split}/{name}/{number}.png": pixels(6, 7, 3)
    for split, count in (("train", 3), ("test", 2))
    for name in ("cat", "dog")
    for number in range(count)
}
FLAT = {name.removeprefix("train/"): image for name, image in TREE.items() if name.startswith("train/")}


def stack(prefix):
    return np.stack([image for name, image in TREE.items() if name.startswith(prefix)])


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_folders_are_classes_in_the_order_of_their_names(root, test):
    write(root, {name.replace("test/", f"{test}/"): image for name, image in TREE.items()})
    (root / "train/.hidden").mkdir()
    write(
        root,
        {"train/cat/.x.png": b"", "train/cat/.thumbs/1.png": b"", "train/cat/notes.txt": b"", "train/readme.png": b""},
    )
    data = load_dataset(Config(data={"name": "folder", "data_dir": str(root)}))
    assert (data.name, data.class_names, data.num_classes) == ("pets", ("cat", "dog"), 2)
    np.testing.assert_array_equal(data.train_images, stack("train"))
    np.testing.assert_array_equal(data.test_images, stack("test"))
    np.testing.assert_array_equal(data.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.test_labels, [0, 0, 1, 1])
    assert (data.crop_padding, data.flip, data.loading_text) == (0, True, "")


def test_the_folder_test_is_used_where_there_are_others(root):
    write(root, TREE | {"val/cat/0.png": pixels(6, 7, 3)})
    assert load(root).test_examples == 4


def test_the_test_images_may_lack_a_class(root):
    write(root, without(TREE, "test/cat"))
    np.testing.assert_array_equal(load(root).test_labels, [1, 1])


def test_a_palette_with_a_transparent_colour_has_alpha(root):
    write(root, {f"{split}/{name}/0.png": PALETTE for split in ("train", "test") for name in "ab"}, transparency=3)
    data = load(root)
    np.testing.assert_array_equal(data.train_images[0], np.asarray(PALETTE.convert("RGB")))
    assert data.loading_text == "; alpha dropped in 4 of 4 images"


def test_images_lie_at_any_depth_of_a_class(root):
    write(root, {name.replace("cat/", "cat/by me/"): image for name, image in TREE.items()})
    np.testing.assert_array_equal(load(root).train_images, stack("train"))


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_a_folder_for_tests_a_share_of_each_class_is_held_out(root, prefix):
    many = {f"{prefix}{name}/{i:02}.png": pixels(3, 3) for name, n in (("a", 20), ("b", 10)) for i in range(n)}
    write(root, many)
    for share, expected in ((0.2, [4, 2]), (0.5, [10, 5])):
        data = load(root, test_share=share)
        assert np.bincount(data.test_labels).tolist() == expected
        assert np.bincount(data.train_labels).tolist() == [20 - expected[0], 10 - expected[1]]
        both = np.concatenate([data.train_images, data.test_images])[..., 0]
        assert sorted(map(bytes, both)) == sorted(map(bytes, many.values()))
    other = load_dataset(Config(seed=1, data={"name": "folder", "data_dir": str(root)}))
    np.testing.assert_array_equal(other.test_images, load(root).test_images)


@pytest.mark.parametrize("ending", ["png", "bmp", "webp", "gif", "tif", "JPEG", "jpg", "ppm"])
def test_every_format_is_decoded_as_pillow_does(root, ending):
    names = [name.replace("png", ending) for name in FLAT]
    write(root, dict(zip(names, FLAT.values(), strict=True)))
    data = load(root, test_share=0.34)
    expected = {bytes(np.asarray(Image.open(root / name).convert("RGB"))) for name in names}
    assert {bytes(image) for image in (*data.train_images, *data.test_images)} == expected


GREY, COLOUR = pixels(6, 7), pixels(6, 7, 3)
WIDE = pixels(6, 7, dtype=np.uint16)
PALETTE = Image.fromarray(COLOUR).quantize(8)
MODES = {
    "grey": ([GREY, GREY], GREY[..., None], ""),
    "RGB": ([COLOUR, COLOUR], COLOUR, ""),
    "RGBA": ([np.dstack([COLOUR, GREY]), COLOUR], COLOUR, "; alpha dropped in 2 of 4 images"),
    "grey with alpha": (
        [Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY)]), GREY],
        GREY[..., None],
        "; alpha dropped in 2 of 4 images",
    ),
    "16 bits": ([WIDE, GREY], (WIDE >> 8).astype(np.uint8)[..., None], "; 16 bits scaled to 8 in 2 of 4 images"),
    "two levels": ([GREY > 99, GREY], np.where(GREY > 99, 255, 0)[..., None], ""),
    "palette": ([PALETTE, COLOUR], np.asarray(PALETTE.convert("RGB")), ""),
    "grey and colour": ([GREY, COLOUR], np.dstack([GREY] * 3), "; grey became RGB in 2 of 4 images"),
    "16 bits and colour": (
        [WIDE, COLOUR],
        np.dstack([(WIDE >> 8).astype(np.uint8)] * 3),
        "; 16 bits scaled to 8 in 2 of 4 images; grey became RGB in 2 of 4 images",
    ),
}


@pytest.mark.parametrize(("images", "expected", "said"), MODES.values(), ids=MODES)
def test_every_mode_becomes_8_bits_and_what_was_changed_is_said(root, images, expected, said):
    write(root, {f"{s}/{c}/0.png": image for s in ("train", "test") for c, image in zip("ab", images, strict=True)})
    data = load(root)
    np.testing.assert_array_equal(data.train_images[0], expected)
    np.testing.assert_array_equal(data.test_images, data.train_images)
    assert data.loading_text == said
    assert load(root).loading_text == said  # from the cache


def test_16_bits_of_colour_are_said(root):
    cells = pixels(2, 2, 3)
    # A PNG with 16 bits a channel, which Pillow reads but does not write.
    png = _png(2, 2, b"".join(b"\0" + bytes(np.stack([row, row], -1)) for row in cells.reshape(2, 6)))
    write(root, {"train/a/0.png": png, "train/b/0.png": png, "test/a/0.png": png})
    data = load(root)
    np.testing.assert_array_equal(data.train_images[0], cells)
    assert data.loading_text == "; 16 bits scaled to 8 in 3 of 3 images"


def _png(width, height, rows):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_images_of_any_size_are_resized_and_cropped(root):
    images = {
        f"{s}/{c}/0.png": pixels(*shape, 3) for s in ("train", "test") for c, shape in (("a", (9, 5)), ("b", (4, 8)))
    }
    write(root, images)
    data = load(root, image_size=4)
    assert data.image_shape == (4, 4, 3)
    for i, name in enumerate(("a", "b")):
        image = Image.fromarray(images[f"train/{name}/0.png"])
        side = min(image.size)
        left, top = ((n - side) / 2 for n in image.size)
        square = image.resize((4, 4), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        np.testing.assert_array_equal(data.train_images[i], np.asarray(square))


def test_a_square_of_the_size_stays_as_it_is():
    image = pixels(9, 9, 3)
    np.testing.assert_array_equal(middle_crop(Image.fromarray(image), 9, 3), image)
    np.testing.assert_array_equal(middle_crop(Image.fromarray(image[:, :7]), 7, 3), image[1:8, :7])


def test_images_are_decoded_once_until_a_file_changes(root, monkeypatch):
    write(root, TREE)
    first = load(root)
    assert not isinstance(first.train_images, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(folder_images, "_decode", None)
        again = load(root)
    assert isinstance(again.train_images, np.memmap)
    np.testing.assert_array_equal(again.train_images, first.train_images)
    assert again.fingerprint == first.fingerprint
    write(root, {"train/cat/1.png": pixels(6, 7, 3)})
    assert load(root).fingerprint != first.fingerprint
    assert load(root, image_size=5).image_shape == (5, 5, 3)


def test_many_images_are_counted_while_they_are_decoded(root, monkeypatch, capsys):
    write(root, TREE)
    monkeypatch.setattr(folder_images, "SECONDS_BETWEEN_LINES", -1)
    monkeypatch.setattr(folder_images, "_PIECE", 4)
    load(root)
    assert capsys.readouterr().out.splitlines() == [
        f"images    {count} of 10 {done}" for done in ("looked at", "decoded") for count in (4, 8, 10)
    ]


def truncated(image, ending, part):
    file = io.BytesIO()
    Image.fromarray(image).save(file, ending)
    return file.getvalue()[: int(len(file.getvalue()) * part)]


def without(tree, prefix):
    return {name: image for name, image in tree.items() if not name.startswith(prefix)}


BAD = {
    "nothing": ({}, "holds no data set: no images in class folders; must be DIR/train/CLASS/*.png and DIR/test/CLASS"),
    "no class folders": (
        {"1.png": COLOUR, "2.png": COLOUR},
        "holds no data set: 2 images lie in it, but in no folder of a class; must be",
    ),
    "no images in train": (
        without(TREE, "train") | {"train/cat/a.txt": b""},
        "train holds no data set: no images in class folders",
    ),
    "one class": ({"cat/1.png": COLOUR, "cat/2.png": COLOUR}, "holds one class only, cat; must be two or more folders"),
    "one class in train": (without(TREE, "train/dog"), "train holds one class only, cat; must be two or more"),
    "a class without an image": (FLAT | {"cow/a.txt": b""}, "holds the folder cow without an image (.png, .jpg,"),
    "a class of the test only": (
        TREE | {"test/dgo/1.png": COLOUR},
        "test holds the class dgo, which train lacks; did you mean dog?",
    ),
    "a class unlike any": (TREE | {"val/x/1.png": COLOUR, "test/cow/1.png": COLOUR}, "which train lacks; train holds"),
    "no train": (
        without(TREE, "train"),
        "holds the folder test, but no folder train; name that of the training",
    ),
    "a misspelt train": (
        {name.replace("train/", "trian/"): image for name, image in TREE.items()},
        "holds the folder test, but no folder train; did you mean trian?",
    ),
    "an unreadable image": (
        TREE | {"test/cat/1.png": b"GIF"},
        "test/cat/1.png cannot be decoded (UnidentifiedImage",
    ),
    "an empty image": (TREE | {"train/dog/2.png": b""}, "train/dog/2.png cannot be decoded (UnidentifiedImageError"),
    "a truncated PNG": (
        TREE | {"train/dog/2.png": truncated(TREE["train/dog/2.png"], "png", 0.7)},
        "train/dog/2.png cannot be decoded (",
    ),
    "a truncated JPEG": (
        TREE | {"train/dog/2.jpg": truncated(TREE["train/dog/2.png"], "jpeg", 0.95)},
        "train/dog/2.jpg cannot be decoded (OSError: image file is truncated",
    ),
    "mixed sizes": (
        TREE | {"test/dog/1.png": COLOUR[:5]},
        "holds images of mixed sizes: test/dog/1.png is 7x5, and train/cat/0.png is 7x6; set data.image_size to the "
        "height and width that they get, as 5",
    ),
    "floating point": (TREE | {"test/dog/1.tif": GREY / np.float32(3)}, "test/dog/1.tif has pixels of floating point"),
    "32 bits": (TREE | {"test/dog/1.tif": WIDE.astype(np.int32) * 99}, "test/dog/1.tif has pixels of 32 bits; must"),
    "nothing to hold out": (
        {"a/1.png": COLOUR, "b/1.png": COLOUR},
        "has no folder test, and data.test_share=0.2: of 2 images this is none; hold out a larger share",
    ),
}


@pytest.mark.parametrize(("images", "message"), BAD.values(), ids=BAD)
def test_folders_that_are_no_data_set_are_refused(root, images, message):
    write(root, images)
    with pytest.raises(UserError) as caught:
        load(root)
    said = str(caught.value)
    assert said.startswith(f"data.data_dir={root}: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_an_image_that_is_linked_into_two_classes_is_called_multi_label(root, link):
    write(root, TREE)
    getattr(root / "train/dog/linked.png", link)(root / "train/cat/1.png")
    with pytest.raises(UserError, match=r"train is multi-label: dog/linked\.png is the same file as cat/1\.png"):
        load(root)


def test_too_large_a_share_for_tests_is_refused(root):
    write(root, FLAT)
    with pytest.raises(UserError, match="6 of 6 images cannot be held out, because each of 2 classes keeps one"):
        load(root, test_share=0.99)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such directory"), ("file", "is a file; give the dir")])
def test_what_is_no_directory_is_refused(tmp_path, name, message):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=f": {message}"):
        load(tmp_path / name)


@pytest.mark.parametrize(("size", "advice"), [(None, "set data.image_size to a smaller"), (5, "lower data.image_size")])
def test_more_pixels_than_a_device_holds_are_refused(root, monkeypatch, size, advice):
    write(root, TREE)
    monkeypatch.setattr(memory, "FITS_ON_DEVICE_BYTES", 100)
    with pytest.raises(UserError, match=f"limit 0 GiB.; {advice}.*, or prepare the data set with TFDS"):
        load(root, image_size=size)


def test_a_folder_that_cannot_be_read_is_refused(root, monkeypatch):
    write(root, TREE)

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(root), "iterdir", forbidden)
    with pytest.raises(UserError, match=f"data.data_dir={root}: {root} cannot be read .Permission denied."):
        load(root)
