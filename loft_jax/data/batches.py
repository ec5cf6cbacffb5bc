"""Batches made on the device: order, crop, flip and normalisation inside jit, all pure functions of a key.

Images [N, height, width, channels] stay uint8 until a batch is normalised.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from loft_jax.randomness import same_under_vmap


def worker_order(
    key: jax.Array, worker: jax.Array, first: jax.Array, count: int, examples: int, workers: int, split: str
) -> jax.Array:
    """Return the training examples that a worker reads next.

    A worker reads an endless stream of epochs, each in a new random order. A batch may contain the end of one epoch and
    the start of the next; no example is dropped. With "shared", an epoch of a worker is the whole training set, in
    another order for each worker. With "disjoint", it is the worker's part of one permutation that all workers share;
    the part has examples // workers examples.

    Args:
      key: PRNG key of the order; worker: index in [0, workers), int32 scalar.
      first: number of examples that the worker has read before, int32 scalar; count: how many to return (static).
      examples: size N of the training set; workers: number S; split: "shared" or "disjoint".

    Returns:
      int32 [count], indices in [0, examples).
    """
    per_epoch, offset = epoch_length(examples, workers, split), 0
    if split == "disjoint":
        offset = worker * per_epoch
    # The largest number of epochs that `count` consecutive examples can be from.
    epochs = math.ceil((count - 1) / per_epoch) + 1
    first_epoch = first // per_epoch
    position = first % per_epoch + jnp.arange(count)

    def permute(epoch: jax.Array) -> jax.Array:
        return epoch_permutation(key, worker, epoch, examples, split)

    permutations = jax.vmap(permute)(first_epoch + jnp.arange(max(1, epochs - 1)))
    if epochs > 1:
        # Sorting is most of what a round does before its local steps, and few rounds reach into the last epoch.
        last = jax.lax.cond(
            position[-1] >= (epochs - 1) * per_epoch,
            lambda: permute(first_epoch + epochs - 1),
            lambda: permutations[0],
        )
        permutations = jnp.concatenate([permutations, last[None]])
    return permutations[position // per_epoch, offset + position % per_epoch].astype(jnp.int32)


def epoch_length(examples: int, workers: int, split: str) -> int:
    """Return the number of examples that a worker reads in one of its epochs."""
    return examples // workers if split == "disjoint" else examples


def epoch_permutation(key: jax.Array, worker: jax.Array, epoch: jax.Array, examples: int, split: str) -> jax.Array:
    """Return a permutation of all examples, int32 [examples]: different for each worker, except with "disjoint"."""
    # Several epochs are drawn together: each must have the order that it has in the next call, beside other epochs.
    key = same_under_vmap(key)
    if split == "shared":
        key = jax.random.fold_in(key, worker)
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


@dataclass(frozen=True)
class Augmentation:
    """Random crop after zero padding, and random mirroring; drawn for a whole batch, so that a device can take a part.

    Attributes:
      padding: pixels of zero padding on each side; 0 for no crop.
      flip: whether to mirror an image with probability 1/2.
    """

    padding: int
    flip: bool

    def draw(self, key: jax.Array, batch: int) -> dict[str, jax.Array]:
        """Draw the random numbers of a batch: "corner" int32 [batch, 2], "mirror" bool [batch]."""
        corner_key, mirror_key = jax.random.split(key)
        return {
            "corner": jax.random.randint(corner_key, (batch, 2), 0, 2 * self.padding + 1),
            "mirror": jax.random.bernoulli(mirror_key, 0.5 if self.flip else 0.0, (batch,)),
        }

    def apply(self, images: jax.Array, drawn: dict[str, jax.Array]) -> jax.Array:
        """Crop and mirror images [batch, height, width, channels] of any dtype; shape and dtype stay the same."""
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
    """Normalise [batch, ..., channels] to float32, by the mean and deviation of each channel, or feature."""
    return (images.astype(jnp.float32) - mean) / std
