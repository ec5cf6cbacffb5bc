"""GPipe (arXiv 1811.06965): the full CNN in stages on devices of their own, trained by plain SGD; LoFT's baseline.

A batch is cut into micro-batches that follow each other through the stages, forward and then back; a stage keeps only
what came in, and computes its activations anew on the way back, as in the paper. Gradients are the mean over
micro-batches, and one update ends the step. Batch norm sees a micro-batch at a time; running statistics move once a
step, by the mean over its micro-batches.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from loft_jax.config import Config
from loft_jax.data import Dataset, worker_order
from loft_jax.devices import REPLICATED, shapes_on
from loft_jax.gpipe.cuts import stage_bounds
from loft_jax.gpipe.stage import PipelineStage
from loft_jax.loft import Resident, make_local_step, split_groups
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


class StageProgram(NamedTuple):
    """The name of a program: its stage, counted from 0 (people count from 1), and what it does there."""

    stage: int
    role: Literal["forward", "backward", "update"]

    def __str__(self) -> str:
        return f"stage {self.stage + 1} {self.role}"


class Transfers:
    """Sends arrays from device to device, and counts them.

    Attributes:
      bytes: sent so far.
      count: number of arrays.
    """

    def __init__(self) -> None:
        self.bytes = self.count = 0

    def __call__(self, array: jax.Array, device: jax.Device) -> jax.Array:
        """The array on that device; returns at once."""
        self.bytes += array.nbytes
        self.count += 1
        return jax.device_put(array, device)


class GPipe:
    """`local_steps` steps of the pipeline, under the names of a round: `train_locally`, then `sync`.

    Between rounds the state is {"stages": a list of {"params", "batch_stats", "momentum"}, each on its own device,
    "round"}.

    Attributes:
      groups: the model's filter groups.
      step: a plain SGD step of the full CNN, whose batches and update rule these are.
      bounds: (first, last) block of each stage, the last exclusive.
      devices: of the stages.
      microbatches: number M.
      inputs: shape and dtype of the micro-batch that comes into each stage.
      variable_shapes, sum_shapes: of each stage's variables, and of what it adds up in a step.
      transfers: activations and their gradients that the last round has sent between stages.
    """

    def __init__(self, config: Config, model: nn.Module, dataset: Dataset, mesh: Mesh):
        self._config, self._mesh = config, mesh
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
        part = (config.data.batch_size // self.microbatches, *dataset.image_shape)
        self.inputs, self.variable_shapes = _shapes(segments, part)
        self.sum_shapes = [
            jax.eval_shape(stage.zeros, variables)
            for stage, variables in zip(self._stages, self.variable_shapes, strict=True)
        ]
        self._order = jax.jit(self._drawn_order)
        self._images, self._labels = jax.jit(self._drawn_images), jax.jit(self._drawn_labels)

    @property
    def sent_per_microbatch(self) -> list[int]:
        """Bytes that each stage sends: on what leaves it, and back the gradient of what came in."""
        ends = [0, *(math.prod(x.shape) * x.dtype.itemsize for x in self.inputs[1:]), 0]
        return [before + behind for before, behind in pairwise(ends)]

    @property
    def bytes_per_step(self) -> int:
        """Of the activations that go between the stages in one step, and their gradients."""
        return self.microbatches * sum(self.sent_per_microbatch)

    def place(self, full: Tree) -> Tree:
        """The full state, on every device of the mesh -> the state between rounds."""
        params = full["params"]
        momentum = full.get("momentum") or jax.tree.map(jnp.zeros_like, params)
        trees = {"params": params, "batch_stats": full["batch_stats"], "momentum": momentum}
        # Copies, for a round donates its state.
        stages = [
            jax.device_put({kind: {n: trees[kind][n] for n in own[kind]} for kind in own}, device, may_alias=False)
            for own, device in zip(self.variable_shapes, self.devices, strict=True)
        ]
        return {"stages": stages, "round": full["round"]}

    def full(self, state: Tree) -> Tree:
        """The state between rounds -> the full state, on every device of the mesh."""
        kinds = ("params", "batch_stats", *(["momentum"] if self._config.loft.momentum == "carry" else []))
        merged = {kind: {n: v for stage in state["stages"] for n, v in stage[kind].items()} for kind in kinds}
        everywhere = NamedSharding(self._mesh, REPLICATED)
        return jax.device_put(merged, everywhere, may_alias=False) | {"round": state["round"]}

    def train_locally(self, state: Tree, data: Resident) -> tuple[None, Tree]:
        """The steps of one round. `state` is donated. Returns (None, {"stages", "loss": the sum over steps})."""
        config, stages, (first, last) = self._config, state["stages"], (self.devices[0], self.devices[-1])
        self.transfers = Transfers()
        if config.loft.momentum == "reset":
            stages = [stage | {"momentum": jax.tree.map(jnp.zeros_like, stage["params"])} for stage in stages]
        images, labels = _on(data.images, first), _on(data.labels, last)
        orders = [self._order(_on(state["round"], device)) for device in (first, last)]
        steps = [_on(state["round"], device) * config.loft.local_steps for device in self.devices]
        total = jax.device_put(jnp.float32(0), last)
        for number in range(config.loft.local_steps):
            inputs = self._images(images, orders[0], steps[0], number)
            sums = self.gradients(stages, inputs, self._labels(labels, orders[1], number))
            total = total + sums[-1].pop("loss")
            stages = [
                stage.update(variables, own, step + number)
                for stage, variables, own, step in zip(self._stages, stages, sums, steps, strict=True)
            ]
        return None, {"stages": stages, "loss": total}

    def sync(self, state: Tree, masks: None, parts: Tree) -> tuple[Tree, jax.Array]:
        """The next state, and the mean loss of the round's steps: nothing is left to meet about."""
        loss = parts["loss"] / self._config.loft.local_steps
        return {"stages": parts["stages"], "round": state["round"] + 1}, loss

    def gradients(
        self, stages: Sequence[Tree], inputs: Sequence[jax.Array], targets: Sequence[jax.Array]
    ) -> list[Tree]:
        """Forward and back, in GPipe's schedule.

        Args:
          stages: each stage's variables.
          inputs: micro-batches on the first device; targets: on the last.

        Returns:
          For each stage {"gradients", "batch_stats"}, means over the micro-batches, and for the last stage "loss".
        """
        last = len(stages) - 1
        arrived: list[list[Any]] = [list(inputs), *([None] * self.microbatches for _ in range(last))]
        sums = [stage.zeros(variables) for stage, variables in zip(self._stages, stages, strict=True)]
        # At each tick of the clock stage s works on the micro-batch that is s behind the first one.
        for clock in range(self.microbatches + last - 1):
            for s in range(max(0, clock - self.microbatches + 1), min(last, clock + 1)):
                part = clock - s
                out, sums[s] = self._stages[s].forward(stages[s], sums[s], arrived[s][part])
                arrived[s + 1][part] = self.transfers(out, self.devices[s + 1])
        # Back in the opposite order. The last stage goes forward and back at once: it would compute all anew.
        arriving: list[list[Any]] = [[None] * self.microbatches for _ in stages]
        for clock in reversed(range(self.microbatches + last)):
            for s in reversed(range(max(0, clock - self.microbatches + 1), min(last, clock) + 1)):
                part = clock - s
                behind = targets[part] if s == last else arriving[s][part]
                back, sums[s] = self._stages[s].backward(stages[s], sums[s], arrived[s][part], behind)
                arrived[s][part] = arriving[s][part] = None
                if s > 0:
                    arriving[s - 1][part] = self.transfers(back, self.devices[s - 1])
        return sums

    def lowered(self, *_: Any) -> dict[StageProgram, jax.stages.Lowered]:
        """The programs of the stages; runs nothing, and needs no arguments to see their shapes."""
        programs, targets = {}, jax.ShapeDtypeStruct(self.inputs[0].shape[:1], jnp.int32)
        arriving_back = [*self.inputs[1:], targets]
        for s, (stage, device) in enumerate(zip(self._stages, self.devices, strict=True)):
            there = partial(shapes_on, SingleDeviceSharding(device))
            variables, sums, x = there((self.variable_shapes[s], self.sum_shapes[s], self.inputs[s]))
            own = {
                "backward": stage.backward.lower(variables, sums, x, there(arriving_back[s])),
                "update": stage.update.lower(variables, sums, there(jax.ShapeDtypeStruct((), jnp.int32))),
            }
            if s + 1 < len(self._stages):
                own["forward"] = stage.forward.lower(variables, sums, x)
            programs |= {StageProgram(s, role): program for role, program in own.items()}
        return programs

    @property
    def runs(self) -> dict[StageProgram, int]:
        """How often each program of `lowered` runs in one round."""
        steps = self._config.loft.local_steps
        times = {"forward": self.microbatches, "backward": self.microbatches, "update": 1}
        return {StageProgram(s, role): steps * n for s in range(len(self.bounds)) for role, n in times.items()}

    def _drawn_order(self, round_number: jax.Array) -> jax.Array:
        config = self._config
        steps, size = config.loft.local_steps, config.data.batch_size
        key, seen = key_for(config.seed, Purpose.ORDER), round_number * steps * size
        order = worker_order(key, jnp.int32(0), seen, steps * size, self._examples, 1, config.data.split)
        return order.reshape(steps, size)

    def _drawn_images(self, images: jax.Array, order: jax.Array, first_step: jax.Array, number: int) -> list[jax.Array]:
        key = key_for(self._config.seed, Purpose.AUGMENTATION, 0, first_step + number)
        return jnp.split(self.step.draw_images(images, order[number], key), self.microbatches)

    def _drawn_labels(self, labels: jax.Array, order: jax.Array, number: int) -> list[jax.Array]:
        return jnp.split(labels[order[number]], self.microbatches)


def _on(array: jax.Array, device: jax.Device) -> jax.Array:
    """The copy that a device holds of a replicated array."""
    return next(shard.data for shard in array.addressable_shards if shard.device == device)


def _shapes(segments: Sequence[nn.Module], part: tuple[int, ...]) -> tuple[list[jax.ShapeDtypeStruct], list[Tree]]:
    """What comes into each segment, given the shape of a micro-batch of images; and its variables, momentum too."""
    inputs, variables = [jax.ShapeDtypeStruct(part, jnp.float32)], []
    for segment in segments:
        own = jax.eval_shape(segment.init, jax.random.key(0), inputs[-1])
        inputs.append(jax.eval_shape(segment.apply, own, inputs[-1]))
        variables.append({"params": own["params"], "batch_stats": own["batch_stats"], "momentum": own["params"]})
    return inputs[:-1], variables
