"""Any TFDS image-classification data set, read without TensorFlow through `tfds.data_source` and ArrayRecord files.

Decoding is slow. So if a data set is kept on the devices, its decoded arrays are also written to the cache directory;
later runs map them into memory. A data set that does not fit on the devices is streamed.
"""

import hashlib
import logging
import os
import re
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.config import Data
from loft_jax.data.dataset import Dataset, is_streamed
from loft_jax.data.streaming.dataset import CROP_PADDING, AnyDataset, StreamedDataset
from loft_jax.data.streaming.stored import StoredImages
from loft_jax.errors import UserError, did_you_mean
from loft_jax.files import cached_arrays

_DECODE_CHUNK = 1000
_TEST_SPLITS = ("test", "validation")


def load_tfds(settings: Data) -> AnyDataset:
    """Load a prepared data set: its train split, and the first of test and validation that has labels.

    Raises:
      UserError: it is unknown, not prepared, not for image classification, or not suitable for `data.loading`.
    """
    name, root = settings.name, _data_root(settings.data_dir)
    directory = _newest_version(root / name)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns that OpenCV is missing, but does not need it.
    import tensorflow_datasets as tfds

    if directory is None:
        raise UserError(_not_prepared(name, root))
    with _report_damage(name, directory):
        builder = tfds.builder_from_directory(directory)
        _check_info(builder.info, name, directory)
        splits = ("train", _test_split(builder, name))
        fingerprints = [_fingerprint(builder, split) for split in splits]
    classes, image = builder.info.features["label"].num_classes, builder.info.features["image"].shape
    counts, mixed = [builder.info.splits[split].num_examples for split in splits], None in image
    assert settings.image_size is not None  # Only a folder's may be null.
    shape = (settings.image_size, settings.image_size, 1 if image[2] == 1 else 3) if mixed else image
    train, test = (StoredImages(name, str(directory), split, shape, classes, mixed) for split in splits)
    if is_streamed(name, image, sum(counts), settings.loading):
        return StreamedDataset(
            name=name,
            train=train,
            test=test,
            examples=counts[0],
            test_examples=counts[1],
            fingerprint=fingerprints[0],
            readers=settings.readers,
        )
    (train_images, train_labels), (test_images, test_labels) = map(_decode, (train, test), counts, fingerprints)
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=classes,
        crop_padding=CROP_PADDING,
        flip=True,
        class_names=tuple(builder.info.features["label"].names or ()) or None,
    )


@contextmanager
def _report_damage(name: str, directory: Path) -> Generator[None]:
    """Turn any exception into UserError, because TFDS raises many kinds if files are damaged or missing."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.name={name}: {directory} cannot be read as a TFDS data set ({reason}); prepare the data set again"
        ) from error


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
        there = did_you_mean(name, ["digits", *prepared])
        hint = there or did_you_mean(name, known, "use digits or a name of tensorflow.org/datasets/catalog")
        return f"data.name={name}: no such data set{hint}{here}"
    configs = [path for path in prepared if path.startswith(f"{name}/")]
    if configs:
        return f"data.name={name}: is prepared with a config; use {' or '.join(configs)}{here}"
    builder = f"tfds.builder({name!r}, data_dir={str(root)!r}, file_format='array_record')"
    program = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    # In double quotes, which are easier to read, where nothing in it has a meaning inside them.
    command = f'python -c "{program}"' if not set(program) & set('"$`\\!') else f"python -c {shlex.quote(program)}"
    return f"data.name={name}: not prepared under data.data_dir={root}; prepare it with\n  {command}\n{here[2:]}"


def _check_info(info: Any, name: str, directory: Path) -> None:
    """Raise UserError if a network cannot be trained on the data set."""
    features = info.features
    if several := [feature for feature in ("label", "labels") if _is_multi_label(features, feature)]:
        raise UserError(
            f"data.name={name}: is multi-label: its feature `{several[0]}` holds several labels of an image, and a "
            "network is trained here on one label of each; use another data set"
        )
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise UserError(f"data.name={name}: has no features `image` and `label`, so it is not for image classification")
    image = features["image"]
    if info.file_format.value != "array_record":
        raise UserError(
            f"data.name={name}: {directory} holds {info.file_format.value} files; prepare the data set again with "
            "file_format='array_record', which is read without TensorFlow"
        )
    filled = {split for split in info.splits if info.splits[split].num_examples}
    if "train" not in filled or filled.isdisjoint(_TEST_SPLITS):
        raise UserError(f"data.name={name}: needs the splits train and test (or validation), has {list(info.splits)}")
    if len(image.shape) != 3 or image.np_dtype != np.uint8:
        raise UserError(
            f"data.name={name}: its images are {np.dtype(image.np_dtype)} of shape {image.shape}; use a data set of "
            "uint8 images with height, width and channels"
        )


def _is_multi_label(features: Any, name: str) -> bool:
    return name in features and hasattr(features[name], "num_classes") and features[name].shape != ()


def _test_split(builder: Any, name: str) -> str:
    """Return the first test split with labels; the labels of ImageNet's test split, for example, are not public."""
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    filled = [split for split in _TEST_SPLITS if split in splits and splits[split].num_examples]
    for split in filled:
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        if source[0]["label"] >= 0:
            return split
    raise UserError(f"data.name={name}: split {' and '.join(filled)} has images without labels")


def _fingerprint(builder: Any, split: str) -> str:
    """Return 16 hex digits that change when the split's files change."""
    files = [Path(file) for file in builder.info.splits[split].filepaths]
    text = "|".join(f"{f.resolve()} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _decode(stored: StoredImages, examples: int, fingerprint: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode all images and labels of a split whose images have one size, or read them from the cache directory."""
    name = f"{stored.name}-{stored.split}-{fingerprint}"
    images, labels = cached_arrays(name, ("images", "labels"), lambda: _decode_all(stored, examples))
    return images, labels


def _decode_all(stored: StoredImages, examples: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.empty((examples, *stored.image_shape), np.uint8), np.empty(examples, np.int32)
    for start in range(0, examples, _DECODE_CHUNK):
        chunk = slice(start, min(start + _DECODE_CHUNK, examples))
        stored.read(range(chunk.start, chunk.stop), images[chunk], labels[chunk])
    return images, labels
