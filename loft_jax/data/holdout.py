"""Images held out of others: each class gives its part, drawn at random by a seed."""

from dataclasses import replace

import numpy as np

from loft_jax.data.dataset import Dataset
from loft_jax.errors import UserError


def hold_out_validation(dataset: Dataset, amount: float, seed: int) -> Dataset:
    """Move training images of a data set to its validation images.

    Args:
      amount: `data.validation`: a share below 1, or a number of images.
      seed: of the draw.

    Raises:
      UserError: the training images are too few, or the share of them is no image.
    """
    try:
        held = draw_held_out(dataset.train_labels, count_held_out(amount, dataset.examples), seed)
    except UserError as error:
        raise UserError(f"data.validation={amount:g}: {error}") from None
    return replace(
        dataset,
        train_images=dataset.train_images[~held],
        train_labels=dataset.train_labels[~held],
        validation_images=dataset.train_images[held],
        validation_labels=dataset.train_labels[held],
    )


def count_held_out(amount: float, examples: int) -> int:
    """Return the number of images that `data.validation` holds out of so many: a share below 1, or a number."""
    return round(amount * examples) if amount < 1 else int(amount)


def draw_held_out(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw examples such that each class gives its share, up to rounding, and keeps at least one.

    Args:
      labels: int [n].
      count: how many are drawn.
      seed: of the draw.

    Returns:
      bool [n], with `count` true entries.

    Raises:
      UserError: no example would be drawn, or more than the classes can give.
    """
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    most = int((sizes - 1).sum())
    if count < 1:
        raise UserError(f"of {len(labels)} images this is none; hold out a larger share")
    if count > most:
        raise UserError(
            f"{count} of {len(labels)} images cannot be held out, because each of {len(sizes)} classes keeps one; hold "
            f"out at most {most}"
        )
    parts = _share_out(count, sizes)
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for number, part in enumerate(parts):
        held[rng.permutation(np.flatnonzero(classes == number))[:part]] = True
    return held


def _share_out(count: int, sizes: np.ndarray) -> np.ndarray:
    """Share `count` out to classes in proportion to their sizes, by largest remainders: int [classes]."""
    exact = count * sizes / sizes.sum()
    parts = np.minimum(exact.astype(int), sizes - 1)
    # The first classes win where remainders are equal; what a small class cannot give, others do.
    while missing := count - int(parts.sum()):
        open_classes = np.flatnonzero(parts < sizes - 1)
        order = open_classes[np.argsort(parts[open_classes] - exact[open_classes], kind="stable")]
        parts[order[:missing]] += 1
    return parts
