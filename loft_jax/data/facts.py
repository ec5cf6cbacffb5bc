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

    def stand_in(self) -> Dataset:
        """Black images of this kind, enough of them to compile programs for."""
        images = np.zeros((_STAND_IN_IMAGES, *self.image_shape), np.uint8)
        labels = np.zeros(_STAND_IN_IMAGES, np.int32)
        return Dataset("stand-in", images, labels, images, labels, self.num_classes, crop_padding=4, flip=True)


_KNOWN = {
    "cifar10": Facts((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": Facts((32, 32, 3), 100, 50_000, 10_000),
    "imagenet2012": Facts((224, 224, 3), 1000, 1_281_167, 50_000),
}


def dataset_facts(config: Config) -> Facts:
    """Of the config's data set. Raises UserError as `load_dataset`, unless it is one of the paper's."""
    if known := _KNOWN.get(config.data.name):
        return known
    dataset = load_dataset(config)
    counts = len(dataset.train_labels), len(dataset.test_labels)
    return Facts(dataset.train_images.shape[1:], dataset.num_classes, *counts)
