"""A round of LoFT on a mesh: partition, extract, local steps, sync (paper, steps 1 to 3).

What a device holds between rounds, and how owned slices come together, is `loft.sync`'s (psum.py, exchange.py). A
device trains one worker's compact sub-CNN at a time.
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.console import megabytes
from loft_jax.data import AnyDataset
from loft_jax.devices import (
    DATA,
    PER_WORKER,
    REPLICATED,
    WORKER,
    DeviceLoop,
    bytes_on_device,
    replicate,
    shapes_with_specs,
    unstack,
    vary,
    wait_for_collective,
)
from loft_jax.loft.exchange import Exchange
from loft_jax.loft.images import Batches, Images
from loft_jax.loft.local_step import make_local_step
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.psum import Psum
from loft_jax.loft.state import State, exchanges
from loft_jax.loft.sub_cnn import split_groups, sub_cnn
from loft_jax.loft.sync import Masks, Sync
from loft_jax.loft.traffic import step_traffic
from loft_jax.models import Network, parameter_count
from loft_jax.randomness import Purpose, key_for

Carry = dict[str, Any]


class Round:
    """The programs of a round on a mesh: `train_locally`, then `finish`.

    Attributes:
      groups: the model's filter groups, `partitioned` where the run splits them.
      step: a local step of the sub-CNN.
      sync: how owned slices come together, and what the state between rounds is.
      holds_full: whether every device holds the full state between rounds.
      slots: workers a device trains, one after another.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        dataset: AnyDataset,
        mesh: Mesh,
        images: Images,
        *,
        fused: bool | None = None,
    ):
        self._config, self._mesh, self._batches = config, mesh, images.training
        self._image_shape = dataset.image_shape
        self.groups = split_groups(model, config)
        self.sync: Sync = (Exchange if exchanges(config, self.groups) else Psum)(config, self.groups, mesh)
        self.holds_full = self.sync.holds_full
        self.slots = config.loft.workers // mesh.shape[WORKER]
        data = mesh.shape[DATA]
        worker_model = sub_cnn(model, self.groups, config).with_norms(axis=DATA if data > 1 else None)
        self.step = make_local_step(config, worker_model, dataset, data_shards=data)
        at_rest, masks = self.sync.state_spec, self.sync.masks_spec
        self._train = DeviceLoop(
            mesh,
            self._begin,
            self._local_step,
            config.loft.local_steps,
            in_specs=(at_rest, masks, REPLICATED, *self._batches.argument_specs),
            carry_spec=PER_WORKER,
            feed_specs=self._batches.feed_specs,
            step_has_collective=data > 1,
            fused=fused,
        )
        self._finish = jax.jit(
            jax.shard_map(
                self._combine, mesh=mesh, in_specs=(at_rest, masks, PER_WORKER), out_specs=(at_rest, REPLICATED)
            ),
            donate_argnums=0,
        )

    @cached_property
    def _slot_numbers(self) -> list[jax.Array]:
        return [replicate(np.int32(slot), self._mesh) for slot in range(self.slots)]

    def place(self, full: State) -> Any:
        """The full state, on every device of the mesh -> the state between rounds."""
        return self.sync.place(full)

    def full(self, state: Any) -> State:
        """The state between rounds -> the full state, on every device of the mesh."""
        return self.sync.full(state)

    def train_locally(self, state: Any, masks: Masks | None = None) -> tuple[Masks, list[Carry]]:
        """Steps 1 and 2: the partition's masks (group name -> bool [S, n]; the round's own if None), and for each slot
        of a device the compact states of its workers after their local steps, leaves [D, ...]."""
        masks = self.sync.partition(state) if masks is None else masks
        given = self._batches.arguments
        with self._batches.feed(state.round) as feed:
            return masks, [self._train(state, masks, slot, *given, feed=feed) for slot in self._slot_numbers]

    def partition_and_extract(self, state: Any) -> tuple[Masks, list[Carry]]:
        """Step 1 alone: what `train_locally` gives, before any local step."""
        masks, given = self.sync.partition(state), self._batches.arguments
        return masks, [self._train.begin(state, masks, slot, *given) for slot in self._slot_numbers]

    def finish(self, state: Any, masks: Masks, workers: list[Carry]) -> tuple[Any, jax.Array]:
        """Step 3: the next state, and the mean loss of all local steps. `state` is donated."""
        wait_for_collective(workers, self._mesh)
        return wait_for_collective(self._finish(state, masks, workers), self._mesh)

    def programs(self, full: State) -> dict[str, RoundProgram]:
        """Name the programs of a round; each slot trains one worker after another."""
        steps = self._config.loft.local_steps
        step = step_traffic(parameter_count(self.step.model, self._image_shape), self._mesh.shape[DATA])
        lowered = self._lowering(full)
        finish = RoundProgram(lowered.finish, 1, self.sync.traffic(full), grows=False)
        if self._train.fused:
            loop = RoundProgram(lowered.loop, self.slots, step.times(steps), begin=lowered.begin, steps=steps)
            return {"loop": loop, "sync": finish}
        return {
            "begin": RoundProgram(lowered.begin, self.slots, grows=False),
            "step": RoundProgram(lowered.step, self.slots * steps, step),
            "sync": finish,
        }

    def resident(self, full: State) -> dict[str, int]:
        """Count the state between rounds, masks, and the states of the workers that wait for the sync."""
        lowered = self._lowering(full)
        at_rest = bytes_on_device(lowered.at_rest)
        worker = bytes_on_device(lowered.carry)
        # What makes a worker's state runs beside the workers of the other slots; other programs run beside all.
        waiting = {"begin": self.slots - 1, "loop": self.slots - 1, "step": self.slots, "sync": self.slots}
        return {name: at_rest + number * worker for name, number in waiting.items()}

    def _lowering(self, full: State) -> "_Lowering":
        return _Lowering(full, self.sync, self._train, self._finish, self._batches, self._mesh, self.slots)

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Name the programs that `full` runs."""
        return self.sync.assembly(full)

    def describe(self, full: State) -> dict[str, str]:
        """Say how the mesh is used, and what a sync and a step move."""
        rows, workers, data = self._mesh.shape[WORKER], self._config.loft.workers, self._mesh.shape[DATA]
        traffic = self.sync.traffic(full)
        exchanged = traffic.payloads.get("all-to-all", 0)
        moved = f"{megabytes(traffic.payloads.get('all-reduce', 0))} summed over the workers"
        if exchanged:
            moved += f", {megabytes(exchanged)} of filters exchanged"
        lines = {
            "mesh": f"worker {rows} x data {data}; {workers} workers, {workers // rows} a device",
            "sync": f"{moved}; each device sends {megabytes(traffic.sent)}, sums in a ring",
        }
        if data > 1:
            step = step_traffic(parameter_count(self.step.model, self._image_shape), data)
            summed = megabytes(sum(step.payloads.values()))
            lines["step"] = f"{summed} summed over a worker's devices; each sends {megabytes(step.sent)}, in a ring"
        return lines

    def figures(self, full: State) -> dict[str, Any]:
        """Give what each device hands in at a sync, in bytes."""
        return {"sync_payload_bytes": sum(self.sync.traffic(full).payloads.values())}

    def _begin(self, state: Any, masks: Masks, slot: jax.Array, *_: jax.Array) -> Carry:
        config, round_number = self._config, vary(state.round, WORKER)
        compact = self.sync.compact(state, masks, slot)
        if config.loft.momentum == "reset":
            compact = compact.with_zero_momentum()
        worker = jax.lax.axis_index(WORKER) * self.slots + slot
        return {
            "compact": compact,
            "worker": worker,
            "step": round_number * config.loft.local_steps,
            "loss": vary(jnp.float32(0), WORKER),
            "images": self._batches.begin(worker, round_number),
        }

    def _local_step(self, carry: Carry, state: Any, masks: Masks, slot: jax.Array, *given: jax.Array) -> Carry:
        step = carry["step"]
        key = key_for(self._config.seed, Purpose.AUGMENTATION, carry["worker"], step)
        images, labels = self._batches.pick(carry["images"], step % self._config.loft.local_steps, *given)
        compact, loss = self.step(carry["compact"], images, labels, key, step)
        return carry | {"compact": compact, "step": step + 1, "loss": carry["loss"] + loss}

    def _combine(self, state: Any, masks: Masks, workers: list[Carry]) -> tuple[Any, jax.Array]:
        compacts = [unstack(carry["compact"]) for carry in workers]
        if self._config.loft.momentum == "reset":
            compacts = [compact.without_momentum() for compact in compacts]
        steps = self._config.loft.workers * self._config.loft.local_steps
        loss = jax.lax.psum(sum(carry["loss"][0] for carry in workers), WORKER) / steps
        return self.sync.combine(state, masks, compacts), loss


class _Lowering:
    """Lowers the programs of a round for the shapes of a full state, sharded as a run's arrays are."""

    def __init__(
        self, full: State, sync: Sync, train: DeviceLoop, finish: Any, batches: Batches, mesh: Mesh, slots: int
    ):
        self._full, self._sync, self._train, self._finish = full, sync, train, finish
        self._batches, self._mesh, self._slots = batches, mesh, slots

    @cached_property
    def at_rest(self) -> tuple[Any, Any]:
        """Shapes of the state between rounds, and of masks."""
        state = shapes_with_specs(self._sync.state_spec, jax.eval_shape(self._sync.place, self._full), self._mesh)
        masks = shapes_with_specs(self._sync.masks_spec, jax.eval_shape(self._sync.partition, state), self._mesh)
        return state, masks

    @cached_property
    def carry(self) -> Any:
        """Shapes of what local steps carry on."""
        return shapes_with_specs(PER_WORKER, jax.eval_shape(self._train.begin, *self._arguments), self._mesh)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        return (*self.at_rest, jax.ShapeDtypeStruct((), jnp.int32), *self._batches.arguments)

    def begin(self) -> jax.stages.Lowered:
        return self._train.begin.lower(*self._arguments)

    def step(self) -> jax.stages.Lowered:
        return self._train.step.lower(self.carry, *self._arguments, *self._batches.feed_shapes)

    def loop(self) -> jax.stages.Lowered:
        return self._train.loop.lower(*self._arguments)

    def finish(self) -> jax.stages.Lowered:
        return self._finish.lower(*self.at_rest, [self.carry] * self._slots)
