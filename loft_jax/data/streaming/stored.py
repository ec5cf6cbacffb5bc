"""One split of a prepared TFDS data set, read by index without TensorFlow."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from loft_jax.data.streaming.decode import evaluation_crop, training_crop
from loft_jax.errors import UserError


@dataclass(frozen=True)
class StoredImages:
    """Where a split is stored, and what is made of its images; it is small, and is sent to reader processes.

    Attributes:
      name: name of the data set; directory: that of its version; split: name of the TFDS split.
      image_shape: (height, width, channels) of the images after decoding.
      num_classes: number of classes; labels are in [0, num_classes).
      mixed: whether images differ in size and are cropped; otherwise they are used as they are stored.
    """

    name: str
    directory: str
    split: str
    image_shape: tuple[int, int, int]
    num_classes: int
    mixed: bool

    def read(
        self,
        indices: Sequence[int] | np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        generators: Sequence[np.random.Generator] | None = None,
    ) -> None:
        """Fill uint8 [k, height, width, channels] and int32 [k]; an index of -1 gives a black image and label -1.

        Args:
          generators: one for each image's random crop; None to take the middle. Not used if images have one size.

        Raises:
          UserError: an image cannot be decoded, or has no label; the message names split and index.
        """
        wanted = [place for place, index in enumerate(indices) if index >= 0]
        if len(wanted) < len(indices):
            images[:], labels[:] = 0, -1
        records = self._records([int(indices[place]) for place in wanted])
        for place, record in zip(wanted, records, strict=True):
            generator = generators[place] if generators is not None else None
            try:
                images[place] = self._pixels(record["image"], generator)
            except Exception as error:  # Decoders raise many kinds of exceptions on damaged images.
                raise self._damaged(int(indices[place]), error) from None
            labels[place] = label = int(record["label"])
            if not 0 <= label < self.num_classes:
                raise UserError(
                    f"data.name={self.name}: image {indices[place]} of split {self.split} has label {label}, not one "
                    f"of 0 to {self.num_classes - 1}; only labelled images can be used for training and tests"
                )

    def _records(self, indices: list[int]) -> list[dict[str, Any]]:
        source = _source(self.directory, self.split, self.mixed)
        try:
            return source.__getitems__(indices)
        except Exception:
            # Find out which record is damaged.
            for index in indices:
                try:
                    source[index]
                except Exception as error:
                    raise self._damaged(index, error) from None
            raise

    def _pixels(self, image: Any, generator: np.random.Generator | None) -> np.ndarray:
        if not self.mixed:
            return image
        size, _, channels = self.image_shape
        if generator is None:
            return evaluation_crop(image, size, channels)
        return training_crop(image, size, channels, generator)

    def _damaged(self, index: int, error: Exception) -> UserError:
        return UserError(
            f"data.name={self.name}: image {index} of split {self.split} in {self.directory} cannot be decoded "
            f"({type(error).__name__}: {error}); prepare the data set again"
        )


@lru_cache
def _source(directory: str, split: str, raw: bool) -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns that OpenCV is missing, but does not need it.
    import tensorflow_datasets as tfds

    decoders: dict[str, Any] | None = {"image": tfds.decode.SkipDecoding()} if raw else None
    return tfds.builder_from_directory(directory).as_data_source(split=split, decoders=decoders)
