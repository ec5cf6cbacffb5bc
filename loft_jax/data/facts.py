"""What costs depend on of a data set: known for the paper's without having them, read from any other."""

import math
from dataclasses import dataclass

import numpy as np

from loft_jax.config import Config
from loft_jax.data import load_dataset
from loft_jax.data.dataset import FITS_ON_DEVICE_BYTES, Dataset

_STAND_IN_IMAGES = 512


@dataclass(frozen=True)
class Facts:
    """Of a data set's images.

    Attributes:
      image_shape: (height, width, channels), as the network sees them.
      num_classes: of the labels.
      examples, test_examples: number of training and test images.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    examples: int
    test_examples: int

    def device_bytes(self, devices: int) -> int:
        """Of uint8 images and int32 labels on each device: the training set, and a part of the test set.

        0 where they are too many to be kept there.
        """
        image = math.prod(self.image_shape) + 4
        fits = image * (self.examples + self.test_examples) <= FITS_ON_DEVICE_BYTES
        return image * (self.examples + math.ceil(self.test_examples / devices)) if fits else 0

    @classmethod
    def of(cls, dataset: Dataset) -> "Facts":
        """Of a data set that is there."""
        counts = len(dataset.train_labels), len(dataset.test_labels)
        return cls(dataset.train_images.shape[1:], dataset.num_classes, *counts)

    def stand_in(self, images: int = _STAND_IN_IMAGES) -> Dataset:
        """So many black images of this kind, to compile programs for; they take the memory of one."""
        black = np.broadcast_to(np.zeros(self.image_shape, np.uint8), (images, *self.image_shape))
        labels = np.zeros(images, np.int32)
        return Dataset("stand-in", black, labels, black, labels, self.num_classes, crop_padding=4, flip=True)


_KNOWN = {
    "cifar10": Facts((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": Facts((32, 32, 3), 100, 50_000, 10_000),
    "imagenet2012": Facts((224, 224, 3), 1000, 1_281_167, 50_000),
}


def dataset_facts(config: Config) -> Facts:
    """Of the config's data set. Raises UserError as `load_dataset`, unless it is one of the paper's."""
    if known := _KNOWN.get(config.data.name):
        return known
    return Facts.of(load_dataset(config))


def facts_to_compile_for(config: Config) -> tuple[Facts, Dataset]:
    """Facts of the config's data set, and images that a run's programs can be compiled for: its own, or a stand-in.

    A stand-in has as many images as are kept on a device, for a program's memory depends on their number.
    """
    if (known := _KNOWN.get(config.data.name)) is None:
        dataset = load_dataset(config)
        return Facts.of(dataset), dataset
    return known, known.stand_in(known.examples) if known.device_bytes(1) else known.stand_in()
