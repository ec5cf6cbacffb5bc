"""A data set in one .npz file: arrays of images and labels, read without unpickling and checked before training.

The file holds, for "train" and "test":
  train_images   uint8, uint16 or bool, [n, height, width, channels] or [n, height, width]; or, instead, the images' own
                 files (JPEG, PNG, ...):
  train_files    uint8 [bytes], the files one after another, and
  train_ends     integers [n], where each of them ends
  train_labels   integers [n], from 0 to the number of classes - 1
and may hold
  class_names    text [classes]
  name           text: the name of the data set in tables; without it, that of the file
"""

import io
import re
from pathlib import Path

import numpy as np

from loft_jax.data.dataset import Dataset
from loft_jax.data.image_files import decode_files
from loft_jax.data.memory import SPLITS, check_labels, count_classes, image_data
from loft_jax.errors import UserError, did_you_mean, format_value
from loft_jax.files import DAMAGED, write_atomically

_KNOWN = (*(f"{split}_{part}" for split in SPLITS for part in ("images", "files", "ends", "labels")), "class_names")


def load_arrays(file: str) -> Dataset:
    """Load the data set of an .npz file. Raises UserError, naming the file and the array, if it holds none."""
    path = Path(file).expanduser()
    try:
        with _open(path) as archive:
            return _ArraysFile(path, archive).dataset()
    except UserError as error:
        raise UserError(f"data.data_dir={format_value(file)}: {error}") from None


def save_arrays(dataset: Dataset, path: Path) -> None:
    """Write a data set into an .npz file that `load_arrays` reads, whole or not at all."""
    text = re.sub(r"[^A-Za-z0-9_.+/-]", "_", dataset.name)[:100]
    arrays = {"name": np.array(text if text[:1].isalnum() else f"_{text}"[:100])}
    for split in SPLITS:
        arrays[f"{split}_images"] = getattr(dataset, f"{split}_images")
        arrays[f"{split}_labels"] = getattr(dataset, f"{split}_labels")
    if dataset.class_names is not None:
        arrays["class_names"] = np.array(dataset.class_names)
    held = io.BytesIO()
    np.savez(held, **arrays)
    write_atomically(path, held.getvalue())


def _open(path: Path) -> "np.lib.npyio.NpzFile":
    if not path.exists():
        near = did_you_mean(str(path), map(str, path.parent.glob("*.npz")), "give the path of an .npz file")
        raise UserError(f"no such file{near}")
    if path.is_dir():
        inside = sorted(path.glob("*.npz"))
        raise UserError(f"is a directory; give the .npz file itself{f', as {inside[0]}' if inside else ''}")
    try:
        archive = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"is no .npz file, or only a part of one ({reason}); write it with numpy.savez") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError("holds a single array, not an .npz file of several; write it with numpy.savez")
    return archive


class _ArraysFile:
    def __init__(self, path: Path, archive: "np.lib.npyio.NpzFile"):
        self._path, self._archive, self._names = path, archive, list(archive.files)

    def dataset(self) -> Dataset:
        # Labels first: if they are wrong, the images, which are larger, are not read.
        labels = {split: check_labels(self._read(f"{split}_labels"), split) for split in SPLITS}
        names = self._class_names()
        count_classes(labels, names)
        images = {split: self._images(split, len(labels[split])) for split in SPLITS}
        return image_data(
            images["train"],
            labels["train"],
            images["test"],
            labels["test"],
            name=self._dataset_name(),
            class_names=names,
        )

    def _images(self, split: str, count: int) -> np.ndarray:
        name, files = f"{split}_images", f"{split}_files"
        if name in self._names and files in self._names:
            raise UserError(f"holds {name} and {files}; leave one of them out")
        if files in self._names:
            return decode_files(self._read(files), self._read(f"{split}_ends"), count, files)
        return self._read(name)

    def _class_names(self) -> list[str] | None:
        if "class_names" not in self._names:
            return None
        names = self._read("class_names")
        if names.dtype.kind != "U" or names.ndim != 1 or not names.size:
            raise UserError(f"class_names is {names.dtype} {names.shape}; must be text [classes], as array(['a', 'b'])")
        return names.tolist()

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
        except DAMAGED as error:
            if "allow_pickle" in str(error):
                raise UserError(
                    f"{name} holds Python objects, which are never unpickled; save it as an array of numbers"
                ) from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name} cannot be read ({reason}); the file is damaged, write it again") from None
