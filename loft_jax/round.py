"""A round of LoFT on a mesh: partition, extract, local steps, sync (paper, steps 1 to 3).

Between rounds every device holds the full state {"params", "batch_stats", "momentum", "round"}; "momentum" is there
only if it is carried. In a round each device holds one worker's compact sub-CNN at a time.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from loft_jax import partition
from loft_jax.config import Config
from loft_jax.data.batches import Augmentation, worker_order
from loft_jax.data.dataset import Dataset
from loft_jax.device_loop import DeviceLoop, unstack, vary
from loft_jax.local_step import LocalStep
from loft_jax.mesh import DATA, PER_WORKER, REPLICATED, WORKER, settle
from loft_jax.models.groups import FilterGroup, with_momentum
from loft_jax.optimizer import learning_rate_schedule, make_sgd
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


def split_groups(model: nn.Module, config: Config) -> tuple[FilterGroup, ...]:
    """The model's filter groups, `partitioned` as `loft.partition` says.

    Raises:
      ValueError: `loft.workers` does not divide the width of a group that is to be split.
    """
    groups = model.filter_groups()
    if config.loft.partition != "paper":
        groups = tuple(replace(group, partitioned=config.loft.partition == "all") for group in groups)
    widths = sorted({group.width for group in groups if group.partitioned})
    workers = config.loft.workers
    if any(width % workers for width in widths):
        fitting = [s for s in range(1, max(widths) + 1) if not any(width % s for width in widths)]
        raise ValueError(
            f"loft.workers={workers}: must divide every partitioned width ({', '.join(map(str, widths))}); "
            f"try {min(fitting, key=lambda s: (abs(s - workers), s))}"
        )
    return groups


def sub_cnn(model: nn.Module, groups: Sequence[FilterGroup], config: Config) -> nn.Module:
    """The module of one worker: its share of every split group, the residual branch rescaled if `loft.rescale`."""
    split, workers = [group for group in groups if group.partitioned], config.loft.workers
    model = model.with_widths({group.name: group.width // workers for group in split})
    if config.loft.rescale:
        model = model.with_branch_scales({group.name: float(workers) for group in split})
    return model


def initial_state(model: nn.Module, config: Config, image_shape: tuple[int, ...]) -> Tree:
    """The state before the first round: a function of the seed alone."""
    key = key_for(config.seed, Purpose.INITIALISATION)
    return starting_state(model.init(key, jnp.zeros((1, *image_shape))), config)


def starting_state(variables: Tree, config: Config) -> Tree:
    """The state of a run that starts from these variables: round 0, and momentum zero where it is carried."""
    state = {"params": variables["params"], "batch_stats": variables["batch_stats"], "round": jnp.int32(0)}
    if config.loft.momentum == "carry":
        state["momentum"] = jax.tree.map(jnp.zeros_like, state["params"])
    return state


class Round:
    """The programs of a round, for states and training data on a mesh: `train_locally`, then `sync`."""

    def __init__(self, config: Config, model: nn.Module, dataset: Dataset, mesh: Mesh, *, fused: bool | None = None):
        self._config, self._mesh = config, mesh
        self.groups = split_groups(model, config)
        self._carried = with_momentum(self.groups)
        self._split = tuple(group for group in self.groups if group.partitioned)
        self._shares = {group.name: group.width // config.loft.workers for group in self._split}
        self._slots = config.loft.workers // mesh.shape[WORKER]
        self._examples = len(dataset.train_labels)
        mean, std = dataset.channel_statistics
        data = mesh.shape[DATA]
        self.step = LocalStep(
            model=sub_cnn(model, self.groups, config).clone(norm_axis=DATA if data > 1 else None),
            sgd=make_sgd(config.optimizer),
            learning_rate=learning_rate_schedule(config),
            label_smoothing=config.optimizer.label_smoothing,
            augmentation=Augmentation(dataset.crop_padding, dataset.flip) if config.data.augment else None,
            mean=mean,
            std=std,
            data_shards=data,
        )
        self._train = DeviceLoop(
            mesh,
            self._begin,
            self._local_step,
            config.loft.local_steps,
            in_specs=(REPLICATED, PER_WORKER, REPLICATED, REPLICATED, REPLICATED),
            carry_spec=PER_WORKER,
            step_has_collective=data > 1,
            fused=fused,
        )
        self._draw = jax.jit(self._draw_masks, out_shardings=NamedSharding(mesh, PER_WORKER))
        self._sync = jax.jit(
            jax.shard_map(
                self._deposit_and_sum,
                mesh=mesh,
                in_specs=(REPLICATED, PER_WORKER, PER_WORKER),
                out_specs=REPLICATED,
            ),
            donate_argnums=0,
        )
        self._slot_numbers = [
            jax.device_put(jnp.int32(slot), NamedSharding(mesh, REPLICATED)) for slot in range(self._slots)
        ]

    def train_locally(self, state: Tree, images: jax.Array, labels: jax.Array) -> tuple[Tree, list[Tree]]:
        """Steps 1 and 2: the partition's masks (group name -> bool [S, n], sharded over `worker`), and for each slot of
        a device the compact states of its workers after their local steps, leaves [D, ...]."""
        masks = self._draw(state["round"])
        return masks, [self._train(state, masks, slot, images, labels) for slot in self._slot_numbers]

    def partition_and_extract(self, state: Tree, images: jax.Array, labels: jax.Array) -> tuple[Tree, list[Tree]]:
        """Step 1 alone: what `train_locally` gives, before any local step."""
        masks = self._draw(state["round"])
        return masks, [self._train.begin(state, masks, slot, images, labels) for slot in self._slot_numbers]

    def sync(self, state: Tree, masks: Tree, workers: list[Tree]) -> tuple[Tree, jax.Array]:
        """Step 3: the next full state, on every device, and the mean loss of all local steps. `state` is donated."""
        settle(workers, self._mesh)
        return settle(self._sync(state, masks, workers), self._mesh)

    def compiled(self, state: Tree, images: jax.Array, labels: jax.Array) -> dict[str, jax.stages.Compiled]:
        """The compiled programs of a round, by name; runs no local step."""
        masks = self._draw(state["round"])
        arguments = (state, masks, self._slot_numbers[0], images, labels)
        workers = [jax.eval_shape(self._train.begin, *arguments)] * self._slots
        return self._train.compiled(*arguments) | {"sync": self._sync.lower(state, masks, workers).compile()}

    def _draw_masks(self, round_number: jax.Array) -> Tree:
        key = key_for(self._config.seed, Purpose.PARTITION, round_number)
        return partition.draw_partition(key, self._split, self._config.loft.workers)

    def _owned(self, masks: Tree, slot: Any) -> dict[str, jax.Array]:
        return partition.owned_indices(masks, self._shares, slot)

    def _begin(self, state: Tree, masks: Tree, slot: jax.Array, images: jax.Array, labels: jax.Array) -> Tree:
        config, state = self._config, vary(state, WORKER)
        round_number = state.pop("round")
        compact = partition.extract(state, self._carried, self._owned(masks, slot))
        if config.loft.momentum == "reset":
            compact["momentum"] = jax.tree.map(jnp.zeros_like, compact["params"])
        worker = jax.lax.axis_index(WORKER) * self._slots + slot
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
        return {
            "compact": compact,
            "order": order.reshape(config.loft.local_steps, config.data.batch_size),
            "worker": worker,
            "step": round_number * config.loft.local_steps,
            "loss": vary(jnp.float32(0), WORKER),
        }

    def _local_step(
        self, carry: Tree, state: Tree, masks: Tree, slot: jax.Array, images: jax.Array, labels: jax.Array
    ) -> Tree:
        step = carry["step"]
        key = key_for(self._config.seed, Purpose.AUGMENTATION, carry["worker"], step)
        indices = carry["order"][step % self._config.loft.local_steps]
        compact, loss = self.step(carry["compact"], images, labels, indices, key, step)
        return carry | {"compact": compact, "step": step + 1, "loss": carry["loss"] + loss}

    def _deposit_and_sum(self, state: Tree, masks: Tree, workers: list[Tree]) -> tuple[Tree, jax.Array]:
        """Owned slices are deposited in zeros and summed, which is exact; shared variables are averaged."""
        full = {name: collection for name, collection in state.items() if name != "round"}
        zeros = jax.tree.map(jnp.zeros_like, full)
        compacts = [unstack({name: carry["compact"][name] for name in full}) for carry in workers]
        deposits = [
            partition.merge(zeros, self._carried, self._owned(masks, slot), compact)
            for slot, compact in enumerate(compacts)
        ]
        deposited = jax.tree.map(lambda *slots: sum(slots[1:], slots[0]), *deposits)
        total = flatten_dict(jax.lax.psum(deposited, WORKER), sep="/")
        before = flatten_dict(full, sep="/")
        axes = partition.filter_axes_present(total, [g for g in self._carried if g.partitioned])
        for path, leaf in total.items():
            if path not in axes:
                total[path] = leaf / self._config.loft.workers
            elif len(axes[path]) > 1:
                total[path] = jnp.where(self._covered(masks, axes[path], leaf.ndim), leaf, before[path])
        steps = self._config.loft.workers * self._config.loft.local_steps
        loss = jax.lax.psum(sum(carry["loss"][0] for carry in workers), WORKER) / steps
        return unflatten_dict(total, sep="/") | {"round": state["round"] + 1}, loss

    @staticmethod
    def _covered(masks: Tree, pairs: list[tuple[int, str]], ndim: int) -> jax.Array:
        """Which entries of a variable of two split groups some worker holds; the rest keep their old value."""
        held = True
        for axis, name in pairs:
            mask = masks[name]
            held = held & mask.reshape(mask.shape[0], *(mask.shape[1] if a == axis else 1 for a in range(ndim)))
        return jax.lax.psum(held.sum(axis=0), WORKER) > 0
