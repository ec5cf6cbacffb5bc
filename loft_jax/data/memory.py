"""A data set made from arrays in memory: their checks, and their conversion to uint8 images."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.data.dataset import FITS_ON_DEVICE_BYTES, Dataset
from loft_jax.data.streaming.dataset import CROP_PADDING
from loft_jax.errors import UserError, format_value

SPLITS = ("train", "test")
ALPHA_DROPPED, BITS_SCALED, BOOLEANS_SCALED = "alpha dropped", "16 bits scaled to 8", "true became 255"


def image_data(
    train_images: Any,
    train_labels: Any,
    test_images: Any,
    test_labels: Any,
    *,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    crop_padding: int | None = None,
    flip: bool = True,
    notes: Sequence[str] = (),
) -> Dataset:
    """Make a data set from arrays of images and labels.

    Args:
      train_images, test_images: [n, height, width, channels], or [n, height, width] for grey images, which get one
        channel: uint8; uint16, of which the high byte is kept; or bool, of which true becomes 255. If there are four
        channels, the last is alpha, and is dropped. Or features for a network of dense layers, uint8 or float,
        [n, features], which are neither cropped nor mirrored.
      train_labels, test_labels: integers [n], from 0 to the number of classes - 1; each has a training image.
      name: name of the data set in tables.
      class_names: a name for each class.
      crop_padding: pixels of zero padding on each side before a random crop; None for 4, as for CIFAR, or a seventh of
        smaller images.
      flip: whether a mirrored image keeps its label.
      notes: what was changed in the images before.

    Raises:
      UserError: the arrays are no such data set, or do not fit on a device; the message names array, entry and rule.
    """
    labels = {
        split: check_labels(np.asarray(values), split)
        for split, values in zip(SPLITS, (train_labels, test_labels), strict=True)
    }
    classes = count_classes(labels, class_names)
    changed: dict[str, None] = dict.fromkeys(notes)
    images = {}
    for split, values in zip(SPLITS, (train_images, test_images), strict=True):
        images[split] = _to_uint8(np.asanyarray(values), split, changed)
        if len(images[split]) != len(labels[split]):
            raise UserError(
                f"{split}_images has {len(images[split])} images and {split}_labels {len(labels[split])} labels; must "
                "be as many"
            )
    features = images["train"].ndim == 2
    shapes = ["x".join(map(str, images[split].shape[1:])) for split in SPLITS]
    if shapes[0] != shapes[1]:
        raise UserError(f"training images are {shapes[0]}, test images {shapes[1]}; must have one shape")
    if images["train"].dtype != images["test"].dtype:
        types = [str(images[split].dtype) for split in SPLITS]
        raise UserError(f"train_images is {types[0]}, and test_images {types[1]}; must have one dtype")
    check_fits(sum(array.nbytes for array in images.values()), "prepare the data set with TFDS, which is streamed")
    return Dataset(
        name=name,
        train_images=images["train"],
        train_labels=labels["train"].astype(np.int32),
        test_images=images["test"],
        test_labels=labels["test"].astype(np.int32),
        num_classes=classes,
        crop_padding=0 if features else _padding(images["train"]) if crop_padding is None else crop_padding,
        flip=flip and not features,
        fingerprint=fingerprint(*(a for s in SPLITS for a in (images[s], labels[s].astype(np.int32)))),
        class_names=tuple(class_names) if class_names is not None else None,
        notes=tuple(changed),
    )


def _padding(images: np.ndarray) -> int:
    return min(CROP_PADDING, min(images.shape[1:3]) // 7)


def check_labels(labels: np.ndarray, split: str) -> np.ndarray:
    """Return the labels of "train" or "test" if they are integers [n] with n > 0. Raises UserError."""
    name = f"{split}_labels"
    if _is_multi_label(labels):
        raise UserError(
            f"{name} is multi-label: its shape is {labels.shape}, and an image has up to "
            f"{int(np.count_nonzero(labels, axis=1).max())} labels; must be [n], one label for each image"
        )
    if labels.dtype.kind not in "iu":
        nan = np.flatnonzero(np.isnan(labels)).tolist() if labels.dtype.kind == "f" else []
        where = f", with NaN at {nan[0]}" if nan else ""
        raise UserError(f"{name} is {labels.dtype}{where}; must be whole numbers, as int32")
    if labels.ndim != 1 or not labels.size:
        raise UserError(f"{name} has the shape {labels.shape}; must be [n], a label for each image")
    return labels


def _is_multi_label(labels: np.ndarray) -> bool:
    """Whether labels are 0 or 1 for each class, several of them 1 for an image; of one-hot labels only one is."""
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "biuf" or not labels.size:
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) > 1).any())


def count_classes(labels: dict[str, np.ndarray], class_names: Sequence[str] | None) -> int:
    """Count the classes of labels of "train" and "test", integers [n] each.

    Raises:
      UserError: a label is outside of 0 to the number of classes - 1, or one of these has no training image; or a name
        is given twice.
    """
    for name in class_names or ():
        if list(class_names or ()).count(name) > 1:
            raise UserError(f"class_names holds {format_value(name)} twice; each class needs a name of its own")
    classes = len(class_names) if class_names else int(labels["train"].max()) + 1
    says = "class_names says" if class_names else "train_labels say"
    for split, values in labels.items():
        outside = np.flatnonzero((values < 0) | (values >= classes))
        if outside.size:
            first, most = outside[0], f"0 to {classes - 1}, as {says}" if classes > 0 else "at least 0"
            raise UserError(f"{split}_labels holds the label {values[first]} at {first}; must be {most}")
    there = np.unique(labels["train"])
    if len(there) < classes:
        missing = np.flatnonzero(np.append(there, classes) != np.arange(len(there) + 1))[0]
        raise UserError(
            f"train_labels holds no label {missing}, and there are labels up to {classes - 1}; must be 0 to the "
            "number of classes - 1, each with an image"
        )
    return classes


def check_fits(size: int, advice: str) -> None:
    """Raise UserError, with what to do instead, if images of so many bytes cannot be kept on a device."""
    if size > FITS_ON_DEVICE_BYTES:
        raise UserError(
            f"has {size / 2**30:.1f} GiB of pixels, and is kept on the device (limit "
            f"{FITS_ON_DEVICE_BYTES / 2**30:.0f} GiB); {advice}"
        )


def directory_name(path: Path) -> str:
    """Return the name of a data set that lies in a directory: the directory's."""
    return path.resolve().name or "data"


def fingerprint(*arrays: np.ndarray) -> str:
    """Return 8 hex digits that change when one of the arrays does: a checksum, which guards against mistakes only."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(repr(array.shape).encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return f"{checksum:08x}"


def _to_uint8(images: np.ndarray, split: str, notes: dict[str, None]) -> np.ndarray:
    """Convert images to uint8 [n, height, width, channels]; what was changed is added to the notes."""
    name = f"{split}_images"
    if images.ndim == 2 and images.size and (images.dtype.kind == "f" or images.dtype == np.uint8):
        return _check_features(images, name)
    if images.dtype not in (np.uint8, np.uint16, np.bool_):
        nan = ", with NaN" if images.dtype.kind == "f" and np.isnan(images).any() else ""
        raise UserError(
            f"{name} is {images.dtype}{nan}; must be uint8, with levels from 0 to 255 (or uint16, with levels to "
            "65535, or bool)"
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UserError(
            f"{name} has the shape {images.shape}; must be [n, height, width, channels], or without channels (or "
            "features, uint8 or float32 [n, features])"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] == 4:
        images = images[..., :3]
        notes[ALPHA_DROPPED] = None
    if images.dtype == np.uint16:
        notes[BITS_SCALED] = None
        return (images >> 8).astype(np.uint8)
    if images.dtype == np.bool_:
        notes[BOOLEANS_SCALED] = None
        return images.astype(np.uint8) * np.uint8(255)
    return images


def _check_features(features: np.ndarray, name: str) -> np.ndarray:
    """Return features [n, features] as uint8 or float32. Raises UserError if one is not finite."""
    if features.dtype.kind == "f":
        with np.errstate(over="ignore"):
            features = features.astype(np.float32, copy=False)
        wrong = np.argwhere(~np.isfinite(features))
        if wrong.size:
            row, column = wrong[0].tolist()
            raise UserError(f"{name} holds {features[row, column]} at [{row}, {column}]; must be finite float32")
    return features
