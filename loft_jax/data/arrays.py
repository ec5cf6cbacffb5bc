"""A data set in one .npz file: arrays of images and labels, read without unpickling and checked before training.

The file holds, for "train" and "test":
  train_images   uint8 [n, height, width, channels]; or, instead, the images' own files (JPEG, PNG, ...):
  train_files    uint8 [bytes], the files one after another, and
  train_ends     integers [n], where each of them ends
  train_labels   integers [n], from 0 to the number of classes - 1
and may hold
  class_names    text [classes]
  name           text: the name of the data set in tables; without it, that of the file
"""

import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from loft_jax.data.dataset import FITS_ON_DEVICE_BYTES, Dataset
from loft_jax.data.image_files import decode_files
from loft_jax.data.streaming.dataset import CROP_PADDING
from loft_jax.errors import UserError, did_you_mean, format_value

SPLITS = ("train", "test")
_KNOWN = (*(f"{split}_{part}" for split in SPLITS for part in ("images", "files", "ends", "labels")), "class_names")
# A damaged zip file, or a damaged array in it, can cause any of these.
_DAMAGED = (ValueError, EOFError, OSError, MemoryError, RuntimeError, NotImplementedError, OverflowError)
_DAMAGED += (SyntaxError, struct.error, zipfile.BadZipFile, zlib.error)


def load_arrays(file: str) -> Dataset:
    """Load the data set of an .npz file. Raises UserError, naming the file and the array, if it holds none."""
    path = Path(file).expanduser()
    try:
        with _open(path) as archive:
            return _ArraysFile(path, archive).dataset()
    except UserError as error:
        raise UserError(f"data.data_dir={format_value(file)}: {error}") from None


def _open(path: Path) -> "np.lib.npyio.NpzFile":
    if not path.exists():
        near = did_you_mean(str(path), map(str, path.parent.glob("*.npz")), "give the path of an .npz file")
        raise UserError(f"no such file{near}")
    if path.is_dir():
        inside = sorted(path.glob("*.npz"))
        raise UserError(f"is a directory; give the .npz file itself{f', as {inside[0]}' if inside else ''}")
    try:
        archive = np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"is no .npz file, or only a part of one ({reason}); write it with numpy.savez") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError("holds a single array, not an .npz file of several; write it with numpy.savez")
    return archive


class _ArraysFile:
    def __init__(self, path: Path, archive: "np.lib.npyio.NpzFile"):
        self._path, self._archive, self._names = path, archive, list(archive.files)

    def dataset(self) -> Dataset:
        labels = {split: self._labels(split) for split in SPLITS}
        classes = self._number_of_classes(labels)
        images = {split: self._images(split, len(labels[split])) for split in SPLITS}
        shapes = [images[split].shape[1:] for split in SPLITS]
        if shapes[0] != shapes[1]:
            train, test = ("x".join(map(str, shape)) for shape in shapes)
            raise UserError(f"training images are {train}, test images {test}; must have one shape")
        size = sum(array.nbytes for array in images.values())
        if size > FITS_ON_DEVICE_BYTES:
            raise UserError(
                f"has {size / 2**30:.1f} GiB of pixels, and arrays are kept on the device (limit "
                f"{FITS_ON_DEVICE_BYTES / 2**30:.0f} GiB); prepare the data set with TFDS, which is streamed"
            )
        return Dataset(
            name=self._dataset_name(),
            train_images=images["train"],
            train_labels=labels["train"],
            test_images=images["test"],
            test_labels=labels["test"],
            num_classes=classes,
            crop_padding=CROP_PADDING,
            flip=True,
            fingerprint=fingerprint(*(part[split] for split in SPLITS for part in (images, labels))),
        )

    def _images(self, split: str, count: int) -> np.ndarray:
        name, files = f"{split}_images", f"{split}_files"
        if name in self._names and files in self._names:
            raise UserError(f"holds {name} and {files}; leave one of them out")
        if files in self._names:
            return decode_files(self._read(files), self._read(f"{split}_ends"), count, files)
        images = self._read(name)
        if images.dtype != np.uint8:
            nan = ", with NaN" if images.dtype.kind == "f" and np.isnan(images).any() else ""
            raise UserError(f"{name} is {images.dtype}{nan}; must be uint8, with levels from 0 to 255")
        if images.ndim != 4 or 0 in images.shape:
            grey = f"; try {name}[..., None]" if images.ndim == 3 and images.size else ""
            raise UserError(f"{name} has the shape {images.shape}; must be [n, height, width, channels]{grey}")
        if len(images) != count:
            raise UserError(f"{name} has {len(images)} images and {split}_labels {count} labels; must be as many")
        return images

    def _labels(self, split: str) -> np.ndarray:
        name = f"{split}_labels"
        labels = self._read(name)
        if labels.dtype.kind not in "iu":
            nan = np.flatnonzero(np.isnan(labels)).tolist() if labels.dtype.kind == "f" else []
            where = f", with NaN at {nan[0]}" if nan else ""
            raise UserError(f"{name} is {labels.dtype}{where}; must be whole numbers, as int32")
        if labels.ndim != 1 or not labels.size:
            raise UserError(f"{name} has the shape {labels.shape}; must be [n], a label for each image")
        return labels

    def _number_of_classes(self, labels: dict[str, np.ndarray]) -> int:
        """Return the number of classes; labels become int32."""
        names = self._class_names()
        classes = len(names) if names else int(labels["train"].max()) + 1
        says = "class_names says" if names else "train_labels say"
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
        labels |= {split: values.astype(np.int32) for split, values in labels.items()}
        return classes

    def _class_names(self) -> list[str]:
        if "class_names" not in self._names:
            return []
        names = self._read("class_names")
        if names.dtype.kind != "U" or names.ndim != 1 or not names.size:
            raise UserError(f"class_names is {names.dtype} {names.shape}; must be text [classes], as array(['a', 'b'])")
        found: list[str] = names.tolist()
        if twice := [name for name in found if found.count(name) > 1]:
            raise UserError(f"class_names holds {format_value(twice[0])} twice; each class needs a name of its own")
        return found

    def _dataset_name(self) -> str:
        if "name" not in self._names:
            return self._path.stem
        name = self._read("name")
        text = str(name) if name.dtype.kind == "U" and name.ndim == 0 else ""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,99}", text):
            raise UserError(f"name is {name.dtype} {format_value(text)}; must be a text as cifar10")
        return text

    def _read(self, name: str) -> np.ndarray:
        if name not in self._names:
            near = did_you_mean(name, [other for other in self._names if other not in _KNOWN])
            there = ", ".join(self._names[:20]) or "nothing"
            raise UserError(f"holds no array {name}{near or f'; there are {there}'}")
        try:
            return self._archive[name]
        except _DAMAGED as error:
            if "allow_pickle" in str(error):
                raise UserError(
                    f"{name} holds Python objects, which are never unpickled; save it as an array of numbers"
                ) from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name} cannot be read ({reason}); the file is damaged, write it again") from None


def fingerprint(*arrays: np.ndarray) -> str:
    """Return 8 hex digits that change when one of the arrays does: a checksum, which guards against mistakes only."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(repr(array.shape).encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return f"{checksum:08x}"
