"""Handwritten digits, 8x8 grey, 10 classes, 1,797 images: real data that ships with scikit-learn."""

from typing import Any

import numpy as np
import sklearn.datasets
from sklearn.model_selection import train_test_split

from loft_jax.data.dataset import Dataset


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels from scikit-learn: float64 [1797, 8, 8], whole numbers from 0 to 16, and int [1797]."""
    digits: Any = sklearn.datasets.load_digits()
    return digits.images, digits.target


def load_digits(seed: int) -> Dataset:
    """Load 80 % training and 20 % test images, stratified by class; the split is a function of `seed`."""
    images, labels = read_digits()
    images, labels = images.astype(np.uint8)[..., None], labels.astype(np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    return Dataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        num_classes=10,
        crop_padding=1,
        flip=False,
        class_names=tuple("0123456789"),
    )
