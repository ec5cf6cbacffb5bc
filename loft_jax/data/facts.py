"""Facts about a data set on which costs depend. Those of the paper's data sets are known; others are loaded."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from loft_jax.config import Config
from loft_jax.data.dataset import Dataset, is_streamed
from loft_jax.data.holdout import count_held_out
from loft_jax.data.load import check_streamable, load_dataset
from loft_jax.data.streaming.dataset import AnyDataset, StreamedDataset
from loft_jax.data.streaming.stored import StoredImages

_PLACEHOLDER_IMAGES = 512


@dataclass(frozen=True)
class Facts:
    """Facts about a data set's images.

    Attributes:
      image_shape: (height, width, channels) of the images that the network gets, or (features,).
      num_classes: number of classes.
      examples, test_examples: number of training and test images.
      streamed: whether they are streamed; otherwise they are kept on the devices.
      validation_examples: number of images held out for validation, which are not among the training images.
      value_bytes: bytes of a value of an image, which is uint8, or of a feature.
    """

    image_shape: tuple[int, ...]
    num_classes: int
    examples: int
    test_examples: int
    streamed: bool = False
    validation_examples: int = 0
    value_bytes: int = 1

    def device_bytes(self, devices: int, batches: int) -> int:
        """Return the bytes of images and int32 labels on each device.

        A device holds the training set and its part of the test and validation sets. If images are streamed, it holds
        only the `batches` images of the batches that it works on or that are dispatched to it.
        """
        image = math.prod(self.image_shape) * self.value_bytes + 4
        spread = math.ceil(self.test_examples / devices) + math.ceil(self.validation_examples / devices)
        kept = batches if self.streamed else self.examples + spread
        return image * kept

    @classmethod
    def from_dataset(cls, data: AnyDataset) -> "Facts":
        """Read the facts from a loaded data set."""
        return cls(
            data.image_shape,
            data.num_classes,
            data.examples,
            data.test_examples,
            data.streamed,
            data.validation_examples,
            data.train_images.itemsize if isinstance(data, Dataset) else 1,
        )

    def placeholder(self, images: int = _PLACEHOLDER_IMAGES) -> AnyDataset:
        """Make a data set of black images of this kind, to compile programs for; it takes the memory of one image."""
        if self.streamed:
            height, width, channels = self.image_shape
            stored = StoredImages("placeholder", "", "", (height, width, channels), self.num_classes, mixed=True)
            return _StreamedPlaceholder("placeholder", stored, stored, images, images, fingerprint="")
        dtype, augmented = np.uint8 if self.value_bytes == 1 else np.float32, len(self.image_shape) == 3
        black = np.broadcast_to(np.zeros(self.image_shape, dtype), (images, *self.image_shape))
        labels = np.zeros(images, np.int32)
        crop_padding = 4 if augmented else 0
        return Dataset("placeholder", black, labels, black, labels, self.num_classes, crop_padding, flip=augmented)


def data_identity(dataset: AnyDataset) -> dict[str, Any]:
    """Return what tells a data set from others, for a run's directory: name, sizes, names of classes, and a checksum.

    The files of a TFDS data set may move, so these are known by their name, which includes no checksum.
    """
    fingerprint, names = None, None
    if isinstance(dataset, Dataset):
        fingerprint, names = dataset.fingerprint, dataset.class_names
    return {
        "name": dataset.name,
        "image_shape": list(dataset.image_shape),
        "classes": dataset.num_classes,
        "training_images": dataset.examples,
        "test_images": dataset.test_examples,
        **({"validation_images": dataset.validation_examples} if dataset.validation_examples else {}),
        **({} if names is None else {"class_names": list(names)}),
        **({} if fingerprint is None else {"fingerprint": fingerprint}),
    }


class _StreamedPlaceholder(StreamedDataset):
    @property
    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean 0 and deviation 1, because there are no images to read."""
        channels = self.image_shape[-1]
        return np.zeros(channels, np.float32), np.ones(channels, np.float32)


# Image shape (None for a size in which images differ), number of classes, of training images and of test images.
_KNOWN: dict[str, tuple[tuple[int | None, int | None, int], int, int, int]] = {
    "cifar10": ((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": ((32, 32, 3), 100, 50_000, 10_000),
    "imagenet2012": ((None, None, 3), 1000, 1_281_167, 50_000),
}


def dataset_facts(config: Config) -> Facts:
    """Return the facts about the config's data set; load it with `load_dataset` if it is not one of the paper's."""
    if known := _KNOWN.get(config.data.name):
        stored, classes, examples, test_examples = known
        streamed = is_streamed(config.data.name, stored, examples + test_examples, config.data.loading)
        (height, width, channels), size = stored, config.data.image_size
        assert size is not None  # Only a folder's may be null.
        if streamed:
            check_streamable(config, config.data.name)
        held = count_held_out(config.data.validation, examples)
        shape = (height or size, width or size, channels)
        return Facts(shape, classes, examples - held, test_examples, streamed, held)
    return Facts.from_dataset(load_dataset(config))


def facts_to_compile_for(config: Config) -> tuple[Facts, AnyDataset]:
    """Return the facts about the config's data set, and a data set to compile programs for: itself, or a placeholder.

    A placeholder has the same number of images, because a program's memory depends on it.
    """
    if config.data.name not in _KNOWN:
        dataset = load_dataset(config)
        return Facts.from_dataset(dataset), dataset
    facts = dataset_facts(config)
    return facts, facts.placeholder(facts.examples)
