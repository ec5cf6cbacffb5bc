"""A data set in memory, and the rule that decides whether a data set is streamed instead."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from loft_jax.errors import UserError

# A data set whose images have at most this many bytes is kept on the device.
FITS_ON_DEVICE_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Dataset:
    """A data set in host memory.

    Attributes:
      train_images, test_images: uint8 [N, height, width, channels]; or features, float32 or uint8 [N, features].
      train_labels, test_labels: int32 [N], in [0, num_classes).
      num_classes: number of classes.
      crop_padding: pixels of zero padding on each side before a random crop.
      flip: whether a mirrored image keeps its label.
      fingerprint: text that changes when an image or a label does; None if nothing but the name says which they are.
      class_names: a name for each class; None if they are not known.
      notes: what was changed in the images when they were loaded, as "alpha dropped".
      validation_images, validation_labels: images held out of the training images, as arrays like theirs; None if none
        are.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    crop_padding: int
    flip: bool
    fingerprint: str | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        splits = [("train", self.train_images, self.train_labels), ("test", self.test_images, self.test_labels)]
        if self.validation_images is not None and self.validation_labels is not None:
            splits.append(("validation", self.validation_images, self.validation_labels))
        for split, images, labels in splits:
            fits = images.dtype == np.uint8 and images.ndim == 4
            fits |= images.dtype in (np.uint8, np.float32) and images.ndim == 2
            if not fits or labels.shape != images.shape[:1] or not len(labels):
                raise ValueError(
                    f"{self.name} {split}: images must be uint8 [N, height, width, channels] with N labels, "
                    f"not {images.dtype} {images.shape} with labels {labels.shape}"
                )
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise ValueError(f"{self.name} {split}: labels must be in [0, {self.num_classes})")
        if self.has_features and (self.crop_padding or self.flip):
            raise ValueError(f"{self.name}: features cannot be cropped or mirrored")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.name}: {len(self.class_names)} class names for {self.num_classes} classes")

    @property
    def examples(self) -> int:
        """Number of training images."""
        return len(self.train_labels)

    @property
    def test_examples(self) -> int:
        """Number of test images."""
        return len(self.test_labels)

    @property
    def validation_examples(self) -> int:
        """Number of images held out for validation."""
        return 0 if self.validation_labels is None else len(self.validation_labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels), or (features,)."""
        return self.train_images.shape[1:]

    @property
    def has_features(self) -> bool:
        """Whether an example is a list of features instead of an image."""
        return self.train_images.ndim == 2

    @property
    def streamed(self) -> bool:
        """Whether batches come from reader processes instead of arrays on the devices."""
        return False

    @property
    def loading_text(self) -> str:
        """Text about the loading of images for the first lines of a run."""
        return "".join(f"; {note}" for note in self.notes)

    @cached_property
    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each channel over the training images: float32 [channels], in uint8 units.

        Those of features are of each feature; the deviation of a feature that does not change is 1.
        """
        if self.has_features:
            return _feature_statistics(self.train_images)
        chunks = np.array_split(self.train_images, math.ceil(self.examples / 4096))
        return compute_statistics(np.sum([count_levels(chunk) for chunk in chunks], axis=0))


def _feature_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and deviation of each feature, [n, features]: float32 [features]."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    # A mean that is rounded leaves a tiny deviation where all values are equal.
    std[features.min(axis=0) == features.max(axis=0)] = 1
    return mean.astype(np.float32), std.astype(np.float32)


def is_streamed(name: str, image_shape: tuple[int | None, ...], images: int, loading: str) -> bool:
    """Whether a data set is streamed.

    Args:
      name: name of the data set.
      image_shape: shape of its uint8 images; None for a size in which they differ.
      images: number of images.
      loading: the setting `data.loading`.

    Raises:
      UserError: `data.loading=device`, but the data set cannot be kept on the device.
    """
    sizes = [size for size in image_shape if size is not None]
    if len(sizes) < len(image_shape):
        if loading == "device":
            raise UserError(
                f"data.loading=device: {name} has images of mixed sizes, which can only be streamed; use stream or auto"
            )
        return True
    size = math.prod(sizes) * images
    if size > FITS_ON_DEVICE_BYTES and loading == "device":
        raise UserError(
            f"data.loading=device: {name} has {size / 2**30:.1f} GiB of pixels, which do not fit on the device (limit "
            f"{FITS_ON_DEVICE_BYTES / 2**30:.0f} GiB); use stream, or auto"
        )
    return loading == "stream" or size > FITS_ON_DEVICE_BYTES


def count_levels(images: np.ndarray) -> np.ndarray:
    """Count the pixels with each level in uint8 images [n, height, width, channels]: int [channels, 256]."""
    # Counting takes eight bytes per pixel, so callers give it some images at a time.
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])


def compute_statistics(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and deviation of each channel from `count_levels`, exactly: float32 [channels], in uint8 units."""
    levels, shares = np.arange(256.0), counts / counts[0].sum()
    mean = shares @ levels
    variance = shares @ levels**2 - mean**2
    return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-6)).astype(np.float32)
