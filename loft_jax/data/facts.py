"""What costs depend on of a data set: known for the paper's without having them, read from any other."""

import math
from dataclasses import dataclass

import numpy as np

from loft_jax.config import Config
from loft_jax.data.dataset import Dataset, is_streamed
from loft_jax.data.load import load_dataset
from loft_jax.data.streaming.dataset import AnyDataset, StreamedDataset
from loft_jax.data.streaming.stored import StoredImages

_STAND_IN_IMAGES = 512


@dataclass(frozen=True)
class Facts:
    """Of a data set's images.

    Attributes:
      image_shape: (height, width, channels), as the network sees them.
      num_classes: of the labels.
      examples, test_examples: number of training and test images.
      streamed: whether they are, or else are kept on the devices.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    examples: int
    test_examples: int
    streamed: bool = False

    def device_bytes(self, devices: int, batches: int) -> int:
        """Of uint8 images and int32 labels on each device.

        Those of the training set and of a part of the test set; or where they are streamed, of the `batches` images
        that are in work or on their way.
        """
        image = math.prod(self.image_shape) + 4
        kept = batches if self.streamed else self.examples + math.ceil(self.test_examples / devices)
        return image * kept

    @classmethod
    def from_dataset(cls, data: AnyDataset) -> "Facts":
        """Of a data set that is there."""
        return cls(data.image_shape, data.num_classes, data.examples, data.test_examples, data.streamed)

    def placeholder(self, images: int = _STAND_IN_IMAGES) -> AnyDataset:
        """So many black images of this kind, to compile programs for; they take the memory of one."""
        if self.streamed:
            stored = StoredImages("stand-in", "", "", self.image_shape, self.num_classes, mixed=True)
            return _StreamedStandIn("stand-in", stored, stored, images, images, fingerprint="")
        black = np.broadcast_to(np.zeros(self.image_shape, np.uint8), (images, *self.image_shape))
        labels = np.zeros(images, np.int32)
        return Dataset("stand-in", black, labels, black, labels, self.num_classes, crop_padding=4, flip=True)


class _StreamedStandIn(StreamedDataset):
    @property
    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Of no images."""
        channels = self.image_shape[-1]
        return np.zeros(channels, np.float32), np.ones(channels, np.float32)


# Image shape (None for what differs), classes, and numbers of training and test images.
_KNOWN: dict[str, tuple[tuple[int | None, int | None, int], int, int, int]] = {
    "cifar10": ((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": ((32, 32, 3), 100, 50_000, 10_000),
    "imagenet2012": ((None, None, 3), 1000, 1_281_167, 50_000),
}


def dataset_facts(config: Config) -> Facts:
    """Of the config's data set. Raises UserError as `load_dataset`, unless it is one of the paper's."""
    if known := _KNOWN.get(config.data.name):
        stored, classes, examples, test_examples = known
        streamed = is_streamed(config.data.name, stored, examples + test_examples, config.data.loading)
        (height, width, channels), size = stored, config.data.image_size
        return Facts((height or size, width or size, channels), classes, examples, test_examples, streamed)
    return Facts.from_dataset(load_dataset(config))


def facts_to_compile_for(config: Config) -> tuple[Facts, AnyDataset]:
    """Facts of the config's data set, and images that a run's programs can be compiled for: its own, or a stand-in.

    A stand-in has as many images as there are, for a program's memory depends on their number.
    """
    if config.data.name not in _KNOWN:
        dataset = load_dataset(config)
        return Facts.from_dataset(dataset), dataset
    facts = dataset_facts(config)
    return facts, facts.placeholder(facts.examples)
