"""A data set that stays in its files: its facts, and its images in the order that a schedule asks for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from loft_jax.data.dataset import FITS_ON_DEVICE_BYTES, Dataset, compute_statistics, count_levels
from loft_jax.data.streaming.schedule import FixedSchedule, Schedule
from loft_jax.data.streaming.stored import StoredImages
from loft_jax.data.streaming.stream import Reading, Stream, chunk_size, default_readers
from loft_jax.files import cached_arrays

# Zero padding before the random crop, which is made on the device, of a TFDS data set whose images have one size.
CROP_PADDING = 4
_STATISTICS_IMAGES = 10_000


@dataclass(frozen=True)
class StreamedDataset:
    """A data set in files; it has the same properties as `Dataset`, except the arrays.

    Attributes:
      train, test: its splits.
      examples, test_examples: number of training and test images.
      fingerprint: text that changes when the training images change.
      readers: number of processes that decode; 0 for threads, None for one process per core.
    """

    name: str
    train: StoredImages
    test: StoredImages
    examples: int
    test_examples: int
    fingerprint: str
    readers: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images after decoding."""
        return self.train.image_shape

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.train.num_classes

    @property
    def validation_examples(self) -> int:
        """Number of images held out for validation: none."""
        return 0

    @property
    def streamed(self) -> bool:
        """Whether batches come from reader processes instead of arrays on the devices."""
        return True

    @property
    def crop_padding(self) -> int:
        """Pixels of zero padding before a random crop on the device; 0 if readers crop, for images of mixed sizes."""
        return 0 if self.train.mixed else CROP_PADDING

    @property
    def flip(self) -> bool:
        """Whether images are mirrored on the device."""
        return not self.train.mixed

    @property
    def loading_text(self) -> str:
        """Text about the loading of images for the first lines of a run: what decodes them."""
        return f", streamed by {f'{self._readers} processes' if self._readers else 'threads'}"

    @property
    def _readers(self) -> int:
        return default_readers() if self.readers is None else self.readers

    def stream(
        self, split: str, schedule: Schedule, *, crop: tuple[int, int] | None = None, start: int = 0, ahead: int = 2
    ) -> Stream:
        """Read the images of "train" or "test" that a schedule lists.

        Args:
          crop: (seed, purpose) of the random crops of images of mixed sizes; None to take the middle.
          start: number of the first chunk.
          ahead: number of chunks to read ahead.
        """
        return Stream(Reading(getattr(self, split), schedule, crop), self._readers, start, ahead)

    @cached_property
    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each channel: float32 [channels], in uint8 units.

        They are computed over all training images if these have one size and would fit on a device; otherwise over the
        middle parts of 10,000 evenly spaced ones. They are kept in the cache directory.
        """
        fits = not self.train.mixed and self.examples * int(np.prod(self.image_shape)) <= FITS_ON_DEVICE_BYTES
        count = self.examples if fits else min(self.examples, _STATISTICS_IMAGES)
        shape = "x".join(map(str, self.image_shape))
        name = f"{Path(self.name).name}-train-{self.fingerprint}-{count}-{shape}"
        (counts,) = cached_arrays(name, ("levels",), lambda: (self._count_levels(count),))
        return compute_statistics(counts)

    def _count_levels(self, count: int) -> np.ndarray:
        """Count the levels of evenly spaced training images, as `count_levels` does."""
        order = np.arange(count) * self.examples // count
        schedule = FixedSchedule(order, np.arange(count)[None, None], chunk_size(count, self.image_shape))
        images = np.empty((schedule.chunk_size, *self.image_shape), np.uint8)
        labels = np.empty(schedule.chunk_size, np.int32)
        with self.stream("train", schedule) as stream:
            found = [count_levels(images[: stream.fill(images, labels)]) for _ in range(len(schedule))]
        return np.sum(found, axis=0)


# A data set that a run can use: kept on the devices, or streamed.
AnyDataset = Dataset | StreamedDataset
