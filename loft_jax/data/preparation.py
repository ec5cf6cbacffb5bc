"""Preparation of images for a network: in training, in the estimation of norm statistics, and in tests."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from loft_jax.data.batches import Augmentation, normalise
from loft_jax.data.streaming.dataset import AnyDataset


@dataclass(frozen=True)
class Preparation:
    """Makes the float32 input of a network from uint8 images, or from features [batch, features].

    Attributes:
      augmentation: random crop and mirroring of training images; None for none.
      mean, std: of each channel over the training images, float32 [channels].
    """

    augmentation: Augmentation | None
    mean: Any
    std: Any

    @classmethod
    def from_dataset(cls, dataset: AnyDataset, *, augment: bool) -> "Preparation":
        """Make the preparation of a data set's images."""
        augment = augment and len(dataset.image_shape) == 3
        augmentation = Augmentation(dataset.crop_padding, dataset.flip) if augment else None
        return cls(augmentation, *dataset.channel_statistics)

    def for_training(
        self, images: jax.Array, key: jax.Array, *, shard: jax.Array | int = 0, shards: int = 1
    ) -> jax.Array:
        """Augment and normalise: uint8 [part, height, width, channels] -> float32 of the same shape.

        Args:
          key: PRNG key of the batch; random numbers are drawn for the whole batch.
          shard, shards: number of this part of the batch (it may be traced), and the number of parts.
        """
        if self.augmentation is not None:
            part = len(images)
            drawn = self.augmentation.draw(key, part * shards)
            if shards > 1:
                drawn = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, shard * part, part), drawn)
            images = self.augmentation.apply(images, drawn)
        return self.for_testing(images)

    def for_testing(self, images: jax.Array) -> jax.Array:
        """Normalise only: uint8 [batch, height, width, channels] -> float32 of the same shape."""
        return normalise(images, jnp.asarray(self.mean), jnp.asarray(self.std))
