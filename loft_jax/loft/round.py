"""A round of LoFT on a mesh: partition, extract, local steps, sync (paper, steps 1 to 3).

What a device holds between rounds, and how workers meet, is `loft.sync`'s (sync.py, exchange.py). A device trains one
worker's compact sub-CNN at a time.
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.data import AnyDataset, worker_order
from loft_jax.devices import (
    DATA,
    PER_WORKER,
    REPLICATED,
    WORKER,
    DeviceLoop,
    replicate,
    settle,
    shapes_on,
    unstack,
    vary,
)
from loft_jax.loft.exchange import Exchange
from loft_jax.loft.feeds import TrainingData, training_specs
from loft_jax.loft.local_step import make_local_step
from loft_jax.loft.psum import Psum
from loft_jax.loft.state import exchanges
from loft_jax.loft.sub_cnn import split_groups, sub_cnn
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


class Round:
    """The programs of a round, for states and training data on a mesh: `train_locally`, then `sync`.

    Attributes:
      groups: the model's filter groups, `partitioned` where the run splits them.
      step: a local step of the sub-CNN.
      meeting: how workers meet at a sync, and what the state between rounds is.
      slots: workers a device trains, one after another.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        dataset: AnyDataset,
        mesh: Mesh,
        *,
        fused: bool | None = None,
    ):
        self._config, self._mesh = config, mesh
        self.groups = split_groups(model, config)
        self.meeting = (Exchange if exchanges(config, self.groups) else Psum)(config, self.groups, mesh)
        self.slots = config.loft.workers // mesh.shape[WORKER]
        self._examples, self._streamed = dataset.examples, dataset.streamed
        specs = training_specs(dataset, mesh)
        data = mesh.shape[DATA]
        worker_model = sub_cnn(model, self.groups, config).clone(norm_axis=DATA if data > 1 else None)
        self.step = make_local_step(config, worker_model, dataset, data_shards=data)
        at_rest, masks = self.meeting.state_spec, self.meeting.masks_spec
        self._train = DeviceLoop(
            mesh,
            self._begin,
            self._local_step,
            config.loft.local_steps,
            in_specs=(at_rest, masks, REPLICATED, *specs["arguments"]),
            carry_spec=PER_WORKER,
            feed_specs=specs["feed"],
            step_has_collective=data > 1,
            fused=fused,
        )
        self._sync = jax.jit(
            jax.shard_map(
                self._combine, mesh=mesh, in_specs=(at_rest, masks, PER_WORKER), out_specs=(at_rest, REPLICATED)
            ),
            donate_argnums=0,
        )

    @cached_property
    def _slot_numbers(self) -> list[jax.Array]:
        return [replicate(np.int32(slot), self._mesh) for slot in range(self.slots)]

    def place(self, full: Tree) -> Tree:
        """The full state, on every device of the mesh -> the state between rounds."""
        return self.meeting.place(full)

    def full(self, state: Tree) -> Tree:
        """The state between rounds -> the full state, on every device of the mesh."""
        return self.meeting.full(state)

    def train_locally(self, state: Tree, data: TrainingData, masks: Tree | None = None) -> tuple[Tree, list[Tree]]:
        """Steps 1 and 2: the partition's masks (group name -> bool [S, n]; the round's own if None), and for each slot
        of a device the compact states of its workers after their local steps, leaves [D, ...]."""
        masks = self.meeting.partition(state) if masks is None else masks
        feed = data.feed(state["round"])
        return masks, [self._train(state, masks, slot, *data.arguments, feed=feed) for slot in self._slot_numbers]

    def partition_and_extract(self, state: Tree, data: TrainingData) -> tuple[Tree, list[Tree]]:
        """Step 1 alone: what `train_locally` gives, before any local step."""
        masks = self.meeting.partition(state)
        return masks, [self._train.begin(state, masks, slot, *data.arguments) for slot in self._slot_numbers]

    def sync(self, state: Tree, masks: Tree, workers: list[Tree]) -> tuple[Tree, jax.Array]:
        """Step 3: the next state, and the mean loss of all local steps. `state` is donated."""
        settle(workers, self._mesh)
        return settle(self._sync(state, masks, workers), self._mesh)

    def lowered(self, state: Tree, data: TrainingData) -> dict[str, jax.stages.Lowered]:
        """The programs of a round, by name, for these arrays or their shapes; runs nothing."""
        masks = jax.eval_shape(self.meeting.partition, state)
        arguments = (state, masks, jax.ShapeDtypeStruct((), jnp.int32), *data.arguments)
        lies = NamedSharding(self._mesh, PER_WORKER)
        workers = [shapes_on(lies, jax.eval_shape(self._train.begin, *arguments))] * self.slots
        train = self._train.lowered(*arguments, feed=data.feed_shapes)
        return train | {"sync": self._sync.lower(state, masks, workers)}

    @property
    def runs(self) -> dict[str, int]:
        """How often each program of `lowered` runs in one round."""
        return {"begin": self.slots, "step": self.slots * self._config.loft.local_steps, "loop": self.slots, "sync": 1}

    def _begin(self, state: Tree, masks: Tree, slot: jax.Array, *_: jax.Array) -> Tree:
        config, round_number = self._config, vary(state["round"], WORKER)
        compact = self.meeting.compact(state, masks, slot)
        if config.loft.momentum == "reset":
            compact["momentum"] = jax.tree.map(jnp.zeros_like, compact["params"])
        worker = jax.lax.axis_index(WORKER) * self.slots + slot
        return {
            "compact": compact,
            "worker": worker,
            "step": round_number * config.loft.local_steps,
            "loss": vary(jnp.float32(0), WORKER),
            **({} if self._streamed else {"order": self._order(worker, round_number)}),
        }

    def _order(self, worker: jax.Array, round_number: jax.Array) -> jax.Array:
        """Which examples the steps of a round train on: int32 [local_steps, batch]."""
        config = self._config
        seen = config.loft.local_steps * config.data.batch_size
        order = worker_order(
            key_for(config.seed, Purpose.ORDER),
            worker,
            first=round_number * seen,
            count=seen,
            examples=self._examples,
            workers=config.loft.workers,
            split=config.data.split,
        )
        return order.reshape(config.loft.local_steps, config.data.batch_size)

    def _local_step(
        self, carry: Tree, state: Tree, masks: Tree, slot: jax.Array, images: jax.Array, labels: jax.Array
    ) -> Tree:
        step = carry["step"]
        key = key_for(self._config.seed, Purpose.AUGMENTATION, carry["worker"], step)
        indices = None if self._streamed else carry["order"][step % self._config.loft.local_steps]
        compact, loss = self.step(carry["compact"], images, labels, indices, key, step)
        return carry | {"compact": compact, "step": step + 1, "loss": carry["loss"] + loss}

    def _combine(self, state: Tree, masks: Tree, workers: list[Tree]) -> tuple[Tree, jax.Array]:
        compacts = [unstack(carry["compact"]) for carry in workers]
        if self._config.loft.momentum == "reset":
            compacts = [{name: part for name, part in compact.items() if name != "momentum"} for compact in compacts]
        steps = self._config.loft.workers * self._config.loft.local_steps
        loss = jax.lax.psum(sum(carry["loss"][0] for carry in workers), WORKER) / steps
        return self.meeting.combine(state, masks, compacts), loss
