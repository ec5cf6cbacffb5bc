"""One local SGD step of one worker on its compact sub-CNN."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Augmentation, normalise
from loft_jax.devices import DATA
from loft_jax.loft.optimizer import learning_rate_schedule, make_sgd, sgd_step

Tree = dict[str, Any]


@dataclass(frozen=True)
class LocalStep:
    """The step's settings; calling it is pure.

    Attributes:
      model: the module of the sub-CNN, its norms averaging over the mesh axis "data".
      sgd, learning_rate: of `loft_jax.optimizer`.
      label_smoothing: probability mass spread over all classes.
      augmentation: None for none.
      mean, std: of each channel, float32 [channels].
      data_shards: devices that share a batch.
    """

    model: nn.Module
    sgd: optax.GradientTransformation
    learning_rate: optax.Schedule
    label_smoothing: float
    augmentation: Augmentation | None
    mean: Any
    std: Any
    data_shards: int

    def __call__(
        self,
        state: Tree,
        images: jax.Array,
        labels: jax.Array,
        indices: jax.Array | None,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[Tree, jax.Array]:
        """Draw one batch, and update.

        Args:
          state: {"params", "batch_stats", "momentum"} of the sub-CNN.
          images, labels: the whole training set, uint8 [N, height, width, channels] and int32 [N].
          indices: int32 [batch], the batch's examples; with several data shards each takes its part. None if `images`
            and `labels` are this shard's part of the batch already.
          key: of the batch's augmentation.
          step: global local step, int32 scalar.

        Returns:
          The new state, and the loss on the whole batch (float32 scalar).
        """
        batch, targets = self.draw_batch(images, labels, indices, key)
        # Barriers before and after: fused with its surroundings, the update would round differently from the same
        # update on its own. Two before, because the results of one vary over every axis that any operand varies over.
        state = jax.lax.optimization_barrier(state)
        batch, targets = jax.lax.optimization_barrier((batch, targets))

        def loss_of(params: Tree) -> tuple[jax.Array, Tree]:
            logits, updated = self.model.apply(
                {"params": params, "batch_stats": state["batch_stats"]}, batch, train=True, mutable=["batch_stats"]
            )
            # The mean is differentiated, not the gradients averaged: those with respect to variables that are equal on
            # all data shards arrive summed over them.
            return jax.lax.pmean(self.mean_loss(logits, targets), DATA), updated["batch_stats"]

        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        params, momentum = sgd_step(self.sgd, gradients, state["momentum"], state["params"], self.learning_rate(step))
        state = {"params": params, "batch_stats": batch_stats, "momentum": momentum}
        return jax.lax.optimization_barrier(state), loss

    def mean_loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Mean cross-entropy of float32 logits [batch, classes] against the smoothed int32 labels [batch]."""
        soft = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), self.label_smoothing)
        return optax.softmax_cross_entropy(logits, soft).mean()

    def draw_batch(
        self, images: jax.Array, labels: jax.Array, indices: jax.Array | None, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """This data shard's part of a batch: float32 images and int32 labels. Random numbers are those of the whole."""
        part = len(images) if indices is None else len(indices) // self.data_shards
        drawn = {} if self.augmentation is None else self.augmentation.draw(key, part * self.data_shards)
        if self.data_shards > 1:
            start = jax.lax.axis_index(DATA) * part
            indices, drawn = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, part), (indices, drawn))
        if indices is not None:
            images, labels = images[indices], labels[indices]
        return self._prepared(images, drawn), labels

    def draw_images(self, images: jax.Array, indices: jax.Array, key: jax.Array) -> jax.Array:
        """The images of `draw_batch`, where one device holds the whole batch."""
        drawn = {} if self.augmentation is None else self.augmentation.draw(key, len(indices))
        return self._prepared(images[indices], drawn)

    def _prepared(self, batch: jax.Array, drawn: Tree) -> jax.Array:
        if self.augmentation is not None:
            batch = self.augmentation.apply(batch, drawn)
        return normalise(batch, jnp.asarray(self.mean), jnp.asarray(self.std))


def make_local_step(config: Config, model: nn.Module, dataset: AnyDataset, data_shards: int = 1) -> LocalStep:
    """The local step of a module, as the config and the data set say."""
    mean, std = dataset.channel_statistics
    return LocalStep(
        model=model,
        sgd=make_sgd(config.optimizer),
        learning_rate=learning_rate_schedule(config),
        label_smoothing=config.optimizer.label_smoothing,
        augmentation=Augmentation(dataset.crop_padding, dataset.flip) if config.data.augment else None,
        mean=mean,
        std=std,
        data_shards=data_shards,
    )
