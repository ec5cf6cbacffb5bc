"""GPipe (arXiv 1811.06965): the full CNN in stages, each on its own device, trained by plain SGD; LoFT's baseline.

A batch is cut into micro-batches that follow each other through the stages, forward and then backward. A stage keeps
only its input, and computes its activations again in the backward pass, as in the paper. Gradients are the mean over
micro-batches, and one update ends the step. Batch norm uses the statistics of one micro-batch at a time; running
statistics change once a step, to the mean over its micro-batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from loft_jax.config import Config
from loft_jax.console import megabytes
from loft_jax.data import AnyDataset
from loft_jax.devices import REPLICATED, nbytes, shapes_with_sharding
from loft_jax.errors import UserError
from loft_jax.gpipe.cuts import as_segmented, stage_bounds
from loft_jax.gpipe.stage import PipelineStage
from loft_jax.loft import Images, RoundProgram, State, make_local_step, split_groups, training_order
from loft_jax.models import Network, SegmentedNetwork
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PipelineState:
    """The state between rounds.

    Attributes:
      round: completed rounds, int32 scalar.
      stages: the state of each stage, on its own device.
    """

    round: Any
    stages: list[State]


class Transfers:
    """Sends arrays from device to device, and counts them.

    Attributes:
      bytes: bytes that were sent so far.
      count: number of arrays that were sent so far.
    """

    def __init__(self) -> None:
        self.bytes = self.count = 0

    def __call__(self, array: jax.Array, device: jax.Device) -> jax.Array:
        """Send an array to a device; returns the array there, without waiting for it."""
        self.bytes += array.nbytes
        self.count += 1
        return jax.device_put(array, device)


class GPipe:
    """A round of `local_steps` steps of the pipeline: `train_locally`, then `finish`.

    Attributes:
      groups: the model's filter groups.
      step: a plain SGD step of the full CNN; the pipeline has the same batches and update rule.
      bounds: (first, last) block of each stage, `last` exclusive.
      devices: one device for each stage.
      microbatches: number M of micro-batches.
      inputs: shape and dtype of each stage's input, one micro-batch.
      state_shapes, sum_shapes: shapes of each stage's state, and of what it adds up in a step.
      transfers: activations and their gradients that the last round sent between stages.
    """

    holds_full = False

    def __init__(self, config: Config, model: Network, dataset: AnyDataset, mesh: Mesh, images: Images):
        model = as_segmented(model, config)
        self._config, self._mesh, self._batches = config, mesh, images.training
        self._names = model.block_names()
        self._examples = dataset.examples
        self.groups = split_groups(model, config)
        self.step = make_local_step(config, model, dataset)
        self.bounds = stage_bounds(model, config, dataset.image_shape)
        self.devices = list(mesh.devices.flat)
        self.transfers = Transfers()
        self.microbatches = config.gpipe.microbatches
        segments = [model.with_segment(first, last) for first, last in self.bounds]
        self._stages = [
            PipelineStage(self.step, segment, self.microbatches, first=s == 0, last=s == len(segments) - 1)
            for s, segment in enumerate(segments)
        ]
        microbatch = (config.data.batch_size // self.microbatches, *dataset.image_shape)
        try:
            self.inputs, self.state_shapes = _find_shapes(segments, microbatch, self.step.rule.moments)
        except Exception as error:  # The user's code may raise anything.
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"gpipe.stages={len(segments)}: a part of {config.model.name} cannot be trained by itself: "
                f"{type(error).__name__}: {reason}"
            ) from error
        self.sum_shapes = [
            jax.eval_shape(stage.zeros, state) for stage, state in zip(self._stages, self.state_shapes, strict=True)
        ]
        self._order = jax.jit(self._draw_order)
        self._images, self._labels = jax.jit(self._draw_images), jax.jit(self._draw_labels)

    @property
    def sent_per_microbatch(self) -> list[int]:
        """Bytes that each stage sends for a micro-batch: its output, and the gradient of its input."""
        ends = [0, *(math.prod(x.shape) * x.dtype.itemsize for x in self.inputs[1:]), 0]
        return [before + after for before, after in pairwise(ends)]

    @property
    def bytes_per_step(self) -> int:
        """Bytes of the activations that go between the stages in one step, and of their gradients."""
        return self.microbatches * sum(self.sent_per_microbatch)

    def place(self, full: State) -> PipelineState:
        """Convert the full state, on every device of the mesh, to the state between rounds."""
        full = full if full.momentum is not None else full.with_zero_moments(self.step.rule.moments)
        # Copies, because a round donates its state.
        stages = [
            jax.device_put(_select_variables(full.collections, own.collections), device, may_alias=False)
            for own, device in zip(self.state_shapes, self.devices, strict=True)
        ]
        return PipelineState(stages=[State.from_collections(stage) for stage in stages], round=full.round)

    def full(self, state: PipelineState) -> State:
        """Convert the state between rounds to the full state, on every device of the mesh."""
        stages = state.stages
        if self._config.loft.momentum == "reset":
            stages = [stage.without_moments() for stage in stages]
        merged: Tree = {}
        for stage in stages:
            for kind, own in stage.collections.items():
                merged[kind] = merged.get(kind, {}) | own
        merged = jax.device_put(merged, NamedSharding(self._mesh, REPLICATED), may_alias=False)
        return State.from_collections(merged, round=state.round)

    def train_locally(self, state: PipelineState) -> tuple[None, Tree]:
        """Run the steps of one round. `state` is donated. Returns (None, {"stages", "loss": the sum over steps})."""
        config, stages, (first, last) = self._config, state.stages, (self.devices[0], self.devices[-1])
        self.transfers = Transfers()
        if config.loft.momentum == "reset":
            stages = [stage.with_zero_moments(self.step.rule.moments) for stage in stages]
        images, labels = (
            _local_copy(array, end) for array, end in zip(self._batches.arguments, (first, last), strict=True)
        )
        orders = [self._order(_local_copy(state.round, device)) for device in (first, last)]
        steps = [_local_copy(state.round, device) * config.loft.local_steps for device in self.devices]
        total = jax.device_put(jnp.float32(0), last)
        for number in range(config.loft.local_steps):
            inputs = self._images(images, orders[0], steps[0], number)
            sums = self.gradients(stages, inputs, self._labels(labels, orders[1], number))
            total = total + sums[-1].pop("loss")
            stages = [
                stage.update(before, own, step + number)
                for stage, before, own, step in zip(self._stages, stages, sums, steps, strict=True)
            ]
        return None, {"stages": stages, "loss": total}

    def finish(self, state: PipelineState, masks: None, workers: Tree) -> tuple[PipelineState, jax.Array]:
        """Return the next state, and the mean loss of the round's steps; there is nothing to sync."""
        loss = workers["loss"] / self._config.loft.local_steps
        return PipelineState(stages=workers["stages"], round=state.round + 1), loss

    def gradients(
        self, stages: Sequence[State], inputs: Sequence[jax.Array], targets: Sequence[jax.Array]
    ) -> list[Tree]:
        """Compute the gradients of one step: forward and backward, in GPipe's order.

        Args:
          stages: state of each stage.
          inputs, targets: images of each micro-batch, on the first device; their labels, on the last device.

        Returns:
          For each stage {"gradients", "batch_stats"}, means over the micro-batches, and for the last stage "loss".
        """
        last = len(stages) - 1
        arrived: list[list[Any]] = [list(inputs), *([None] * self.microbatches for _ in range(last))]
        sums: list[Tree] = [stage.zeros(state) for stage, state in zip(self._stages, stages, strict=True)]
        # At each tick of the clock stage s works on the micro-batch with number clock - s.
        for clock in range(self.microbatches + last - 1):
            for s in range(max(0, clock - self.microbatches + 1), min(last, clock + 1)):
                microbatch = clock - s
                out, sums[s] = self._stages[s].forward(stages[s], sums[s], arrived[s][microbatch])
                arrived[s + 1][microbatch] = self.transfers(out, self.devices[s + 1])
        # Backward in the opposite order. The last stage goes forward and backward at once, to compute nothing twice.
        arriving: list[list[Any]] = [[None] * self.microbatches for _ in stages]
        for clock in reversed(range(self.microbatches + last)):
            for s in reversed(range(max(0, clock - self.microbatches + 1), min(last, clock) + 1)):
                microbatch = clock - s
                incoming = targets[microbatch] if s == last else arriving[s][microbatch]
                back, sums[s] = self._stages[s].backward(stages[s], sums[s], arrived[s][microbatch], incoming)
                arrived[s][microbatch] = arriving[s][microbatch] = None
                if s > 0:
                    arriving[s - 1][microbatch] = self.transfers(back, self.devices[s - 1])
        return sums

    def programs(self, full: State) -> dict[str, RoundProgram]:
        """Return the programs of the stages by name. All that a stage sends is counted in its backward program."""
        programs: dict[str, RoundProgram] = {}
        last = len(self.bounds) - 1
        steps, microbatches = self._config.loft.local_steps, self.microbatches
        filling = (microbatches + last) / microbatches
        for s, sent in enumerate(self.sent_per_microbatch):
            tracing = _StageTracing(self, s)
            own = {
                "forward": RoundProgram(tracing.forward, steps * microbatches, stage=s, ticks=filling),
                "backward": RoundProgram(tracing.backward, steps * microbatches, sent=sent, stage=s, ticks=filling),
                "update": RoundProgram(tracing.update, steps, stage=s, grows=False),
            }
            if s == last:
                # The last stage goes forward and backward at once.
                del own["forward"]
            programs |= {f"stage {s + 1} {role}": program for role, program in own.items()}
        return programs

    def resident(self, full: State) -> dict[str, int]:
        """Count the bytes of the stage's state, its sums, and the inputs that wait.

        While the pipeline is full, the inputs of all micro-batches wait for the backward pass, as does one gradient.
        """
        held = [
            nbytes((state, sums)) + self.microbatches * nbytes(self.inputs[s]) + nbytes(self.inputs[s + 1 : s + 2])
            for s, (state, sums) in enumerate(zip(self.state_shapes, self.sum_shapes, strict=True))
        ]
        return {name: held[program.stage or 0] for name, program in self.programs(full).items()}

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return no programs: stages are copied to every device."""
        return {}

    def describe(self, full: State) -> dict[str, str]:
        """Return where the stages are, and what goes between them: label -> text."""
        stages = ", ".join(
            f"{self._names[first]} to {self._names[last - 1]} on {device.platform}:{device.id}"
            for (first, last), device in zip(self.bounds, self.devices, strict=True)
        )
        size = self.inputs[0].shape[0]
        moved = f"{megabytes(self.bytes_per_step)} a step between the stages"
        return {
            "mesh": f"{len(self.bounds)} stages, a device each",
            "stages": stages,
            "pipeline": f"{self.microbatches} micro-batches of {size}; {moved}",
        }

    def figures(self, full: State) -> dict[str, Any]:
        """Return the number of stages."""
        return {"gpipe_stages": len(self.bounds)}

    def _draw_order(self, round_number: jax.Array) -> jax.Array:
        return training_order(self._config, self._examples, jnp.int32(0), round_number)

    def _draw_images(self, images: jax.Array, order: jax.Array, first_step: jax.Array, number: int) -> list[jax.Array]:
        key = key_for(self._config.seed, Purpose.AUGMENTATION, 0, first_step + number)
        batch = self.step.preparation.for_training(images[order[number]], key)
        return jnp.split(batch, self.microbatches)

    def _draw_labels(self, labels: jax.Array, order: jax.Array, number: int) -> list[jax.Array]:
        return jnp.split(labels[order[number]], self.microbatches)


class _StageTracing:
    """Traces the programs of one stage for the shapes on its device."""

    def __init__(self, pipeline: GPipe, number: int):
        self._stage, self._device = pipeline._stages[number], pipeline.devices[number]
        self._state, self._sums, self._input = self._put_on_device(
            (pipeline.state_shapes[number], pipeline.sum_shapes[number], pipeline.inputs[number])
        )
        targets = jax.ShapeDtypeStruct(pipeline.inputs[0].shape[:1], jnp.int32)
        # Input of the backward pass: the gradient of what the stage sent on; for the last stage, labels.
        self._incoming = self._put_on_device([*pipeline.inputs[1:], targets][number])

    def _put_on_device(self, shapes: Any) -> Any:
        return shapes_with_sharding(SingleDeviceSharding(self._device), shapes)

    def forward(self) -> jax.stages.Traced:
        return self._stage.forward.trace(self._state, self._sums, self._input)

    def backward(self) -> jax.stages.Traced:
        return self._stage.backward.trace(self._state, self._sums, self._input, self._incoming)

    def update(self) -> jax.stages.Traced:
        step = self._put_on_device(jax.ShapeDtypeStruct((), jnp.int32))
        return self._stage.update.trace(self._state, self._sums, step)


def _local_copy(array: jax.Array, device: jax.Device) -> jax.Array:
    """Return the copy of a replicated array that a device holds."""
    return next(shard.data for shard in array.addressable_shards if shard.device == device)


def _select_variables(whole: Tree, own: Tree) -> Tree:
    """Select the variables of a stage: from each collection the modules that the stage has."""
    return {kind: {name: whole[kind][name] for name in modules} for kind, modules in own.items()}


def _find_shapes(
    segments: Sequence[SegmentedNetwork], microbatch: tuple[int, ...], moments: Sequence[str]
) -> tuple[list[jax.ShapeDtypeStruct], list[State]]:
    """Find the shapes of each segment's input and state, given the shape of a micro-batch of images."""
    inputs, states = [jax.ShapeDtypeStruct(microbatch, jnp.float32)], []
    for segment in segments:
        own = jax.eval_shape(segment.init, jax.random.key(0), inputs[-1])
        train = partial(segment.apply, train=True, mutable=["batch_stats"])
        inputs.append(jax.eval_shape(train, own, inputs[-1])[0])
        states.append(State.from_collections(own, **dict.fromkeys(moments, own["params"])))
    return inputs[:-1], states
