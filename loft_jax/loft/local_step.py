"""One local step of one worker on its compact sub-CNN."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import optax

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Preparation
from loft_jax.devices import DATA
from loft_jax.loft.optimizer import LearningRate, UpdateRule, learning_rate_schedule, make_update_rule
from loft_jax.loft.packing import PackedState, pack_statistics
from loft_jax.loft.state import State
from loft_jax.models import Network
from loft_jax.randomness import Purpose


@dataclass(frozen=True)
class LocalStep:
    """The step's settings; calling it is pure.

    Attributes:
      model: the module of the sub-CNN, its norms averaging over the mesh axis "data" where that has several devices.
      rule, learning_rate: as made in `loft_jax.loft.optimizer`.
      label_smoothing: probability mass spread over all classes.
      preparation: how the images are prepared.
      data_shards: devices that share a batch.
    """

    model: Network
    rule: UpdateRule
    learning_rate: LearningRate
    label_smoothing: float
    preparation: Preparation
    data_shards: int

    def __call__(
        self, state: PackedState, images: jax.Array, labels: jax.Array, key: jax.Array, step: jax.Array
    ) -> tuple[PackedState, jax.Array]:
        """Inside shard_map: prepare this shard's part of a batch, and update.

        Args:
          state: state of the sub-CNN, as `pack` makes it.
          images, labels: the part, uint8 [part, height, width, channels] and int32 [part].
          key: key of the batch's augmentation, and of what the network draws.
          step: number of the local step in the run, int32 scalar.

        Returns:
          The new state, and the loss on the whole batch (float32 scalar).
        """
        shard = jax.lax.axis_index(DATA) if self.data_shards > 1 else 0
        batch = self.preparation.for_training(images, key, shard=shard, shards=self.data_shards)
        rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(key, Purpose.DROPOUT), shard)}
        # Barriers before and after: if XLA fused the update with the code around it, the update would round differently
        # from the same update on its own. Two before, because the results of a barrier vary over every axis that one of
        # its operands varies over.
        state = jax.lax.optimization_barrier(state)
        batch, targets = jax.lax.optimization_barrier((batch, labels))

        def loss_of(trained: Any) -> tuple[jax.Array, Any]:
            variables = {"params": state.unpack_params(trained), "batch_stats": state.batch_stats}
            logits, updated = self.model.apply(variables, batch, train=True, mutable=["batch_stats"], rngs=rngs)
            # Differentiate the mean; averaging the gradients would be wrong: those with respect to variables that are
            # equal on all data shards are already summed over the shards.
            return jax.lax.pmean(self.mean_loss(logits, targets), DATA), updated.get("batch_stats", {})

        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        gradients = jax.tree.map(lambda gradient, leaf: gradient.astype(leaf.dtype), gradients, state.params)
        updated = self.rule.update_parameters(gradients, state, self.learning_rate(step), step)
        statistics = pack_statistics(batch_stats)
        state = replace(state, statistics=statistics, **updated).with_copies(self.model.dtype)
        return jax.lax.optimization_barrier(state), loss

    def pack(self, state: State) -> PackedState:
        """Pack the state of the sub-CNN, with moments, for the step."""
        return PackedState.pack(state, self.model.dtype)

    def mean_loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Mean cross-entropy of float32 logits [batch, classes] against the smoothed int32 labels [batch]."""
        soft = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), self.label_smoothing)
        return optax.softmax_cross_entropy(logits, soft).mean()


def make_local_step(config: Config, model: Network, dataset: AnyDataset, data_shards: int = 1) -> LocalStep:
    """Make the local step of a module, as the config and the data set say."""
    return LocalStep(
        model=model,
        rule=make_update_rule(config),
        learning_rate=learning_rate_schedule(config),
        label_smoothing=config.optimizer.label_smoothing,
        preparation=Preparation.from_dataset(dataset, augment=config.data.augment),
        data_shards=data_shards,
    )
