"""What every image goes through before a network sees it, in training, in the estimation of norms and in the test."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from loft_jax.data.batches import Augmentation, normalise
from loft_jax.data.streaming.dataset import AnyDataset


@dataclass(frozen=True)
class Preparation:
    """What makes uint8 images into what a network sees, wherever they are trained or tested on.

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
        augmentation = Augmentation(dataset.crop_padding, dataset.flip) if augment else None
        return cls(augmentation, *dataset.channel_statistics)

    def for_training(
        self, images: jax.Array, key: jax.Array, *, shard: jax.Array | int = 0, shards: int = 1
    ) -> jax.Array:
        """Augment and normalise: uint8 [part, height, width, channels] -> float32 of the same shape.

        Args:
          key: of the batch; the random numbers are those of the whole batch.
          shard, shards: which part of the batch this is (it may be traced), and how many there are.
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
