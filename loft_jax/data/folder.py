"""A data set of image files in folders, one folder for each class.

DIR/train/CLASS/... is trained on, and DIR/test/CLASS/... tested on. Without a folder for tests, a share of each class
of DIR/train/CLASS/..., or of DIR/CLASS/..., is held out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loft_jax.config import Data
from loft_jax.data.dataset import Dataset
from loft_jax.data.folder_images import read_images
from loft_jax.data.holdout import draw_held_out
from loft_jax.data.memory import directory_name, image_data
from loft_jax.errors import UserError, did_you_mean, format_value

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_TRAIN, _TESTS = "train", ("test", "val", "valid", "validation")
# The same test images in every run, whatever its seed.
_SPLIT_SEED = 0
_TREE = "DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, or DIR/CLASS/*.png"

Classes = dict[str, list[Path]]


def load_folder(settings: Data) -> Dataset:
    """Load the data set of a directory, from `data_dir`, `image_size` and `test_share` of the settings.

    Raises:
      UserError: there is no such data set, or one of its images cannot be read; the message names folder or file.
    """
    assert settings.data_dir is not None  # The config has been validated.
    root = Path(settings.data_dir).expanduser()
    try:
        return _load(root, settings)
    except UserError as error:
        raise UserError(f"data.data_dir={format_value(settings.data_dir)}: {error}") from None
    except OSError as error:
        where = format_value(str(error.filename))
        raise UserError(
            f"data.data_dir={format_value(settings.data_dir)}: {where} cannot be read ({error.strerror})"
        ) from None


def _load(root: Path, settings: Data) -> Dataset:
    if not root.is_dir():
        raise UserError("is a file; give the directory of the images" if root.exists() else "no such directory")
    train, test = _find_classes(root)
    names = list(train)
    files = [path for classes in (train, test) for paths in classes.values() for path in paths]
    labels = _labels(train, names), _labels(test, names)
    images, notes = read_images(files, root, settings.image_size)
    count = len(labels[0])
    if test:
        parts = (images[:count], labels[0], images[count:], labels[1])
    else:
        held = _hold_out_tests(labels[0], settings.test_share)
        parts = (images[~held], labels[0][~held], images[held], labels[0][held])
    return image_data(*parts, name=directory_name(root), class_names=names, notes=notes)


def _hold_out_tests(labels: np.ndarray, share: float) -> np.ndarray:
    try:
        return draw_held_out(labels, round(share * len(labels)), _SPLIT_SEED)
    except UserError as error:
        raise UserError(f"has no folder test, and data.test_share={share:g}: {error}") from None


def _labels(classes: Classes, names: Sequence[str]) -> np.ndarray:
    return np.repeat(np.array([names.index(name) for name in classes], np.int32), [len(p) for p in classes.values()])


def _find_classes(root: Path) -> tuple[Classes, Classes]:
    """Return the files of each class for training and for tests; those for tests are {} if they must be held out."""
    folders = [path.name for path in _subfolders(root)]
    tests = [name for name in _TESTS if name in folders]
    if _TRAIN not in folders:
        if tests:
            near = did_you_mean(_TRAIN, folders, f"name that of the training images {_TRAIN}")
            raise UserError(f"holds the folder {tests[0]}, but no folder {_TRAIN}{near}")
        return _read_classes(root, root), {}
    train = _read_classes(root / _TRAIN, root)
    test = _read_classes(root / tests[0], root) if tests else {}
    for name in test:
        if name not in train:
            near = did_you_mean(name, train, f"{_TRAIN} holds {', '.join(list(train)[:10])}")
            raise UserError(f"{tests[0]} holds the class {format_value(name)}, which {_TRAIN} lacks{near}")
    return train, test


def _read_classes(directory: Path, root: Path) -> Classes:
    """Return class -> its image files, at any depth, both in order of their names."""
    where = "" if directory == root else f"{directory.name} "
    classes = {path.name: _image_files(path) for path in _subfolders(directory)}
    if not any(classes.values()):
        loose = sum(_is_image(path) for path in directory.iterdir())
        reason = f"{loose} images lie in it, but in no folder of a class" if loose else "no images in class folders"
        raise UserError(f"{where}holds no data set: {reason}; must be {_TREE}")
    for name, files in classes.items():
        if not files:
            raise UserError(
                f"{where}holds the folder {format_value(name)} without an image ({', '.join(SUFFIXES)}); each folder "
                "is a class: remove it, or put its images there"
            )
    _refuse_several_labels(classes, where)
    if len(classes) == 1 and (directory == root or directory.name == _TRAIN):
        only = format_value(next(iter(classes)))
        raise UserError(f"{where}holds one class only, {only}; must be two or more folders, each a class")
    return classes


def _refuse_several_labels(classes: Classes, where: str) -> None:
    """Raise UserError if one file is in the folders of two classes, as a link."""
    owners: dict[tuple[int, int], tuple[str, Path]] = {}
    for name, files in classes.items():
        for path in files:
            found = path.stat()
            other, first = owners.setdefault((found.st_dev, found.st_ino), (name, path))
            if other != name:
                raise UserError(
                    f"{where}is multi-label: {format_value(f'{name}/{path.name}')} is the same file as "
                    f"{format_value(f'{other}/{first.name}')}; an image must have one label, so keep it in one folder"
                )


def _subfolders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(directory: Path) -> list[Path]:
    found = (path for path in directory.rglob("*") if _is_image(path))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(directory).parts))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
