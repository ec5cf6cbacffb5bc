"""Batches drawn on the device: order, crop, flip and normalisation inside jit, all pure functions of a key.

`examples` [N, height, width, channels] stay uint8 until a batch is normalised.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


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


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """uint8 [batch, height, width, channels] -> float32, each channel by its mean and deviation [channels]."""
    return (images.astype(jnp.float32) - mean) / std
