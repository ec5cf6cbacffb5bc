"""What a loaded data set is."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Data sets are kept on the device whole.
FITS_ON_DEVICE_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Dataset:
    """A data set in host memory.

    Attributes:
      train_images, test_images: uint8 [N, height, width, channels].
      train_labels, test_labels: int32 [N], in [0, num_classes).
      num_classes: number of classes.
      crop_padding: pixels of zero padding on each side before a random crop.
      flip: whether a mirrored image keeps its label.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    crop_padding: int
    flip: bool

    def __post_init__(self) -> None:
        for split, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
                raise ValueError(
                    f"{self.name} {split}: images must be uint8 [N, height, width, channels] with N labels, "
                    f"not {images.dtype} {images.shape} with labels {labels.shape}"
                )
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise ValueError(f"{self.name} {split}: labels must lie in [0, {self.num_classes})")

    @cached_property
    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each channel over the training images: float32 [channels], in uint8 units."""
        # From each channel's histogram, exact, and some images at a time: counting takes eight bytes a pixel.
        levels, channels = np.arange(256.0), range(self.train_images.shape[-1])
        chunks = np.array_split(self.train_images, math.ceil(len(self.train_images) / 4096))
        counts = sum(np.stack([np.bincount(part[..., c].ravel(), minlength=256) for c in channels]) for part in chunks)
        shares = counts / counts[0].sum()
        mean = shares @ levels
        variance = shares @ levels**2 - mean**2
        return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-6)).astype(np.float32)
