"""Batches drawn on the device: order, crop, flip and normalisation inside jit, all pure functions of a key.

`examples` [N, height, width, channels] stay uint8 until a batch is normalised.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from loft_jax.data.streaming.dataset import AnyDataset


def worker_order(
    key: jax.Array, worker: jax.Array, first: jax.Array, count: int, examples: int, workers: int, split: str
) -> jax.Array:
    """Which training examples a worker reads next.

    A worker reads an endless stream of epochs, each a fresh permutation, so batches straddle epochs and no example is
    dropped. Under "shared" a worker's epoch is the whole training set in an order of its own; under "disjoint" it is
    the worker's part of one permutation that all workers share, examples // workers long.

    Args:
      key: PRNG key of the order; worker: index in [0, workers), int32 scalar.
      first: examples the worker has read before, int32 scalar; count: how many to give (static).
      examples: size N of the training set; workers: number S; split: "shared" or "disjoint".

    Returns:
      int32 [count], indices in [0, examples).
    """
    per_epoch, offset = epoch_length(examples, workers, split), 0
    if split == "disjoint":
        offset = worker * per_epoch
    # The most epochs that `count` consecutive examples can touch.
    touched = math.ceil((count - 1) / per_epoch) + 1
    first_epoch = first // per_epoch
    permutations = jax.vmap(lambda epoch: epoch_permutation(key, worker, epoch, examples, split))(
        first_epoch + jnp.arange(touched)
    )
    position = first % per_epoch + jnp.arange(count)
    return permutations[position // per_epoch, offset + position % per_epoch].astype(jnp.int32)


def epoch_length(examples: int, workers: int, split: str) -> int:
    """Examples that a worker reads in one of its epochs."""
    return examples // workers if split == "disjoint" else examples


def epoch_permutation(key: jax.Array, worker: jax.Array, epoch: jax.Array, examples: int, split: str) -> jax.Array:
    """Of all examples, int32 [examples]: a worker's own, or under "disjoint" the one whose parts the workers read."""
    if split == "shared":
        key = jax.random.fold_in(key, worker)
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


@dataclass(frozen=True)
class Augmentation:
    """Random crop after zero padding, and random mirroring; drawn for a whole batch, so that a part of it can be cut.

    Attributes:
      padding: pixels on each side, 0 for no crop.
      flip: whether to mirror half of the images.
    """

    padding: int
    flip: bool

    def draw(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        """The random numbers of a batch: "corner" int32 [batch, 2], "mirror" bool [batch]."""
        corner_key, mirror_key = jax.random.split(key)
        return {
            "corner": jax.random.randint(corner_key, (batch, 2), 0, 2 * self.padding + 1),
            "mirror": jax.random.bernoulli(mirror_key, 0.5 if self.flip else 0.0, (batch,)),
        }

    def apply(self, images: jax.Array, drawn: dict[str, jax.Array]) -> jax.Array:
        """Images [batch, height, width, channels] of any dtype -> the same shape and dtype."""
        shape = images.shape[1:]
        if self.padding:
            pad = (self.padding, self.padding)
            padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
            images = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(
                padded, drawn["corner"]
            )
        if self.flip:
            images = jnp.where(drawn["mirror"][:, None, None, None], images[:, :, ::-1], images)
        return images


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
    def of(cls, dataset: "AnyDataset", *, augment: bool) -> "Preparation":
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


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """uint8 [batch, height, width, channels] -> float32, each channel by its mean and deviation [channels]."""
    return (images.astype(jnp.float32) - mean) / std
