"""A round of LoFT on a mesh: partition, extract, local steps, sync (paper, steps 1 to 3).

`loft.sync` decides what a device holds between rounds, and how owned slices come together (psum.py, exchange.py). A
device trains its workers in turns: one compact sub-CNN after another.
"""

from functools import cached_property, partial
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
from loft_jax.loft.fragments import Fragment, all_fragments, fragment_of_round, share_of_rounds
from loft_jax.loft.images import Batches, Images
from loft_jax.loft.local_step import make_local_step
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.psum import Psum
from loft_jax.loft.split import split_groups, sub_cnn
from loft_jax.loft.state import State, exchanges
from loft_jax.loft.sync import Masks, Sync
from loft_jax.loft.traffic import step_traffic
from loft_jax.models import Network, parameter_count
from loft_jax.randomness import Purpose, key_for

Carry = dict[str, Any]

# What is said of the bytes in each kind of collective of a sync.
_MOVED = {
    "all-reduce": "summed over the workers",
    "all-to-all": "exchanged",
    "all-gather": "sent to all",
}


class Round:
    """The programs of a round on a mesh: `train_locally`, then `finish`.

    Attributes:
      groups: the model's filter groups, `partitioned` where the run splits them.
      step: a local step of the sub-CNN.
      sync: how owned slices come together, and what the state between rounds is.
      holds_full: whether every device holds the full state between rounds.
      turns: number of workers that a device trains, one after another.
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
        self.turns = config.loft.workers // mesh.shape[WORKER]
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
        self._finish = {fragment: self._jit_finish(fragment) for fragment in all_fragments(config)}

    def _jit_finish(self, fragment: Fragment) -> Any:
        """Jit the sync of one fragment."""
        at_rest, masks = self.sync.state_spec, self.sync.masks_spec
        combine = jax.shard_map(
            partial(self._combine, fragment=fragment),
            mesh=self._mesh,
            in_specs=(at_rest, masks, PER_WORKER),
            out_specs=(at_rest, REPLICATED),
        )
        return jax.jit(combine, donate_argnums=0)

    @cached_property
    def _turn_numbers(self) -> list[jax.Array]:
        return [replicate(np.int32(turn), self._mesh) for turn in range(self.turns)]

    def place(self, full: State) -> Any:
        """Convert the full state, on every device of the mesh, to the state between rounds."""
        return self.sync.place(full)

    def full(self, state: Any) -> State:
        """Convert the state between rounds to the full state, on every device of the mesh."""
        return self.sync.full(state)

    def train_locally(self, state: Any, masks: Masks | None = None) -> tuple[Masks, list[Carry]]:
        """Do steps 1 and 2: partition, extract and train.

        Args:
          state: the state between rounds.
          masks: the partition, group name -> bool [S, n]; None for the partition that the sync gives for this round.

        Returns:
          The masks; and for each turn the compact states of the workers after their local steps, leaves [D, ...].
        """
        masks = self.sync.partition(state) if masks is None else masks
        arguments = self._batches.arguments
        with self._batches.feed(state.round) as feed:
            return masks, [self._train(state, masks, turn, *arguments, feed=feed) for turn in self._turn_numbers]

    def partition_and_extract(self, state: Any) -> tuple[Masks, list[Carry]]:
        """Do step 1 alone: return what `train_locally` returns, but before any local step."""
        masks, arguments = self.sync.partition(state), self._batches.arguments
        return masks, [self._train.begin(state, masks, turn, *arguments) for turn in self._turn_numbers]

    def finish(self, state: Any, masks: Masks, workers: list[Carry]) -> tuple[Any, jax.Array]:
        """Do step 3, the sync. Returns the next state, and the mean loss of all local steps. `state` is donated."""
        wait_for_collective(workers, self._mesh)
        fragments = list(self._finish)
        # Reading the round waits for the sync before this round, so it is only read where something depends on it.
        fragment = fragments[0] if len(fragments) == 1 else fragment_of_round(self._config, int(state.round))
        return wait_for_collective(self._finish[fragment](state, masks, workers), self._mesh)

    def programs(self, full: State) -> dict[str, RoundProgram]:
        """Return the programs of a round by name; those of local steps run once for each turn."""
        steps = self._config.loft.local_steps
        step = step_traffic(parameter_count(self.step.model, self._image_shape), self._mesh.shape[DATA])
        tracing = self._make_tracing(full)
        syncs = {
            str(fragment): RoundProgram(
                partial(tracing.finish, finish),
                share_of_rounds(self._config, fragment),
                self.sync.traffic(full, fragment),
                grows=False,
                due=partial(self._is_due, fragment),
            )
            for fragment, finish in self._finish.items()
        }
        if self._train.fused:
            loop = RoundProgram(tracing.loop, self.turns, step.times(steps), begin=tracing.begin, steps=steps)
            return {"loop": loop, **syncs}
        return {
            "begin": RoundProgram(tracing.begin, self.turns, grows=False),
            "step": RoundProgram(tracing.step, self.turns * steps, step),
            **syncs,
        }

    def resident(self, full: State) -> dict[str, int]:
        """Count the bytes of the state between rounds, the masks, and the workers' states that wait for the sync."""
        tracing = self._make_tracing(full)
        at_rest = bytes_on_device(tracing.at_rest)
        worker = bytes_on_device(tracing.carry)
        # While "begin" or "loop" makes one worker's state, those of the other turns may wait; the other programs run
        # while the states of all turns are there.
        waiting = {"begin": self.turns - 1, "loop": self.turns - 1, "step": self.turns}
        waiting |= {str(fragment): self.turns for fragment in self._finish}
        return {name: at_rest + number * worker for name, number in waiting.items()}

    def _make_tracing(self, full: State) -> "_Tracing":
        return _Tracing(full, self.sync, self._train, self._batches, self._mesh, self.turns)

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return the programs that `full` runs, by name."""
        return self.sync.assembly(full)

    def describe(self, full: State) -> dict[str, str]:
        """Return how the mesh is used, and what a sync and a step move: label -> text."""
        rows, workers, data = self._mesh.shape[WORKER], self._config.loft.workers, self._mesh.shape[DATA]
        traffics = {str(fragment): self.sync.traffic(full, fragment) for fragment in self._finish}
        traffic = max(traffics.values(), key=lambda traffic: traffic.sent)
        moved = [f"{megabytes(payload)} {_MOVED[kind]}" for kind, payload in traffic.payloads.items() if kind in _MOVED]
        which = "; the one that sends most" if len(traffics) > 1 else ""
        sent = f"each device sends {megabytes(traffic.sent)}, sums in a ring{which}"
        lines = {
            "mesh": f"worker {rows} x data {data}; {workers} workers, {workers // rows} a device",
            "sync": f"{', '.join(moved) or megabytes(0)}; {sent}",
        }
        if data > 1:
            step = step_traffic(parameter_count(self.step.model, self._image_shape), data)
            summed = megabytes(sum(step.payloads.values()))
            lines["step"] = f"{summed} summed over a worker's devices; each sends {megabytes(step.sent)}, in a ring"
        return lines

    def figures(self, full: State) -> dict[str, Any]:
        """Return the bytes that each device contributes to a sync."""
        syncs = [self.sync.traffic(full, fragment) for fragment in self._finish]
        return {"sync_payload_bytes": max(sum(traffic.payloads.values()) for traffic in syncs)}

    def _begin(self, state: Any, masks: Masks, turn: jax.Array, *_: jax.Array) -> Carry:
        config, round_number = self._config, vary(state.round, WORKER)
        compact = self.sync.compact(state, masks, turn)
        if config.loft.momentum == "reset":
            compact = compact.with_zero_moments(config.optimizer.moments)
        worker = jax.lax.axis_index(WORKER) * self.turns + turn
        return {
            "compact": self.step.pack(compact),
            "worker": worker,
            "step": round_number * config.loft.local_steps,
            "loss": vary(jnp.float32(0), WORKER),
            "images": self._batches.begin(worker, round_number),
        }

    def _local_step(self, carry: Carry, state: Any, masks: Masks, turn: jax.Array, *arguments: jax.Array) -> Carry:
        step = carry["step"]
        key = key_for(self._config.seed, Purpose.AUGMENTATION, carry["worker"], step)
        images, labels = self._batches.pick(carry["images"], step % self._config.loft.local_steps, *arguments)
        compact, loss = self.step(carry["compact"], images, labels, key, step)
        return carry | {"compact": compact, "step": step + 1, "loss": carry["loss"] + loss}

    def _is_due(self, fragment: Fragment, round_number: int) -> bool:
        return fragment_of_round(self._config, round_number) == fragment

    def _combine(self, state: Any, masks: Masks, workers: list[Carry], *, fragment: Fragment) -> tuple[Any, jax.Array]:
        compacts = [unstack(carry["compact"]).unpack() for carry in workers]
        if self._config.loft.momentum == "reset":
            compacts = [compact.without_moments() for compact in compacts]
        steps = self._config.loft.workers * self._config.loft.local_steps
        loss = jax.lax.psum(sum(carry["loss"][0] for carry in workers), WORKER) / steps
        return self.sync.combine(state, masks, compacts, fragment), loss


class _Tracing:
    """Traces the programs of a round for the shapes of a full state, sharded as a run's arrays are."""

    def __init__(self, full: State, sync: Sync, train: DeviceLoop, batches: Batches, mesh: Mesh, turns: int):
        self._full, self._sync, self._train = full, sync, train
        self._batches, self._mesh, self._turns = batches, mesh, turns

    @cached_property
    def at_rest(self) -> tuple[Any, Any]:
        """Return the shapes of the state between rounds, and of the masks."""
        state = shapes_with_specs(self._sync.state_spec, jax.eval_shape(self._sync.place, self._full), self._mesh)
        masks = shapes_with_specs(self._sync.masks_spec, jax.eval_shape(self._sync.partition, state), self._mesh)
        return state, masks

    @cached_property
    def carry(self) -> Any:
        """Return the shapes of what one local step passes to the next."""
        return shapes_with_specs(PER_WORKER, jax.eval_shape(self._train.begin, *self._arguments), self._mesh)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        # Sharded as a run's turn is: then a program that was compiled from shapes is the one that the run calls.
        turn = shapes_with_specs(REPLICATED, jax.ShapeDtypeStruct((), jnp.int32), self._mesh)
        return (*self.at_rest, turn, *self._batches.arguments)

    def begin(self) -> jax.stages.Traced:
        return self._train.begin.trace(*self._arguments)

    def step(self) -> jax.stages.Traced:
        return self._train.step.trace(self.carry, *self._arguments, *self._batches.feed_shapes)

    def loop(self) -> jax.stages.Traced:
        return self._train.loop.trace(*self._arguments)

    def finish(self, finish: Any) -> jax.stages.Traced:
        return finish.trace(*self.at_rest, [self.carry] * self._turns)
