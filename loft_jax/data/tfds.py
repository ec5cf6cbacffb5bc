"""Any TFDS image-classification data set, read without TensorFlow through `tfds.data_source` and ArrayRecord files.

Decoding is slow, so the decoded arrays are kept in the cache directory and mapped into memory from the second run on.
"""

import contextlib
import difflib
import hashlib
import logging
import os
import re
from pathlib import Path

import numpy as np

from loft_jax.cache import cache_directory
from loft_jax.data.dataset import FITS_ON_DEVICE_BYTES, Dataset
from loft_jax.errors import UserError

_DECODE_CHUNK = 1000
_TEST_SPLITS = ("test", "validation")


def load_tfds(name: str, data_dir: str | None) -> Dataset:
    """The train split, and the test (or else validation) split, of a prepared data set.

    Args:
      name: TFDS name, with its config where it has one ("imagenet_resized/32x32").
      data_dir: TFDS data directory; None for TFDS's default.

    Raises:
      UserError: unknown, not prepared, not image classification, or too large to keep on a device.
    """
    root = _data_root(data_dir)
    directory = _newest_version(root / name)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of the missing OpenCV, which it does not need.
    import tensorflow_datasets as tfds

    if directory is None:
        raise UserError(_not_prepared(name, root))
    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:
        raise UserError(f"data.name={name}: {directory} cannot be read as a TFDS data set ({error})") from error
    test_split = _checked(builder.info, name, directory)
    label = builder.info.features["label"]
    (train_images, train_labels), (test_images, test_labels) = (
        _decoded(builder, split) for split in ("train", test_split)
    )
    for split, labels in (("train", train_labels), (test_split, test_labels)):
        if labels.min() < 0:
            raise UserError(f"data.name={name}: split {split} has images without labels")
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=label.num_classes,
        crop_padding=4,
        flip=True,
    )


def _data_root(data_dir: str | None) -> Path:
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _newest_version(directory: Path) -> Path | None:
    versions = [p for p in directory.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", p.name) and any(p.glob("*.json"))]
    return max(versions, key=lambda p: [int(part) for part in p.name.split(".")], default=None)


def _not_prepared(name: str, root: Path) -> str:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    candidates = [*root.glob("*"), *root.glob("*/*")] if root.is_dir() else []
    prepared = sorted(str(p.relative_to(root)) for p in candidates if _newest_version(p))
    here = f"; known here: digits, and prepared under {root}: {', '.join(prepared) or 'nothing'}"
    if name.split("/")[0] not in known:
        close = difflib.get_close_matches(name, ["digits", *known], n=1)
        hint = f"did you mean {close[0]}?" if close else "use digits or a name of tensorflow.org/datasets/catalog"
        return f"data.name={name}: no such data set; {hint}{here}"
    configs = [path for path in prepared if path.startswith(f"{name}/")]
    if configs:
        return f"data.name={name}: is prepared with a config; use {' or '.join(configs)}{here}"
    command = (
        f'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{root}', file_format='array_record').download_and_prepare()\""
    )
    return f"data.name={name}: not prepared under data.data_dir={root}; prepare it with\n  {command}\n{here[2:]}"


def _checked(info, name: str, directory: Path) -> str:
    """The name of the test split, once it is clear that the data set can be trained on from device memory."""
    features = info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise UserError(f"data.name={name}: has no features `image` and `label`, so it is no image classification")
    image = features["image"]
    if info.file_format.value != "array_record":
        raise UserError(
            f"data.name={name}: {directory} holds {info.file_format.value} files; prepare the data set again with "
            "file_format='array_record', which is read without TensorFlow"
        )
    test_split = next((split for split in _TEST_SPLITS if split in info.splits), None)
    if "train" not in info.splits or test_split is None:
        raise UserError(f"data.name={name}: needs the splits train and test (or validation), has {list(info.splits)}")
    if None in image.shape or image.np_dtype != np.uint8:
        raise UserError(
            f"data.name={name}: its images are {np.dtype(image.np_dtype)} of shape {image.shape}; only uint8 images of "
            "one size can be kept on the device"
        )
    size = int(np.prod(image.shape)) * sum(info.splits[s].num_examples for s in ("train", test_split))
    if size > FITS_ON_DEVICE_BYTES:
        raise UserError(
            f"data.name={name}: {size / 2**30:.1f} GiB of pixels do not fit on the device "
            f"(limit {FITS_ON_DEVICE_BYTES / 2**30:.0f} GiB); use a smaller or resized data set"
        )
    return test_split


def _decoded(builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    files = [Path(file) for file in builder.info.splits[split].filepaths]
    fingerprint = "|".join(f"{f.resolve()} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)
    key = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    stem = cache_directory() / "decoded" / f"{builder.info.name}-{split}-{key}"
    paths = [Path(f"{stem}-{part}.npy") for part in ("images", "labels")]
    if all(path.exists() for path in paths):
        return np.load(paths[0], mmap_mode="r"), np.load(paths[1])
    source = builder.as_data_source(split=split)
    images = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), _DECODE_CHUNK):
        for i, record in enumerate(source.__getitems__(range(start, min(start + _DECODE_CHUNK, len(source)))), start):
            images[i], labels[i] = record["image"], record["label"]
    for path, array in zip(paths, (images, labels), strict=True):
        _write_aside(path, array)
    return images, labels


def _write_aside(path: Path, array: np.ndarray) -> None:
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            np.save(file, array)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        logging.getLogger(__name__).warning("decoded images are not cached: %s", error)
