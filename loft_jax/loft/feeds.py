"""Where a step's batch comes from: the data set on every device, to pick from, or batches streamed to the devices.

To a program the first is an argument of the whole loop, the second one of each step. A streamed loop is dispatched step
by step on every backend: fused into one program, it would need all of a round's images on the device at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from loft_jax.config import Config
from loft_jax.data import AnyDataset, FixedPlan, Stream, StreamedDataset, TrainingPlan, chunk_size
from loft_jax.devices import DATA, PER_DEVICE, PER_WORKER, REPLICATED, WORKER, replicate, shapes_on
from loft_jax.randomness import Purpose

# Batches that readers have ready in host memory.
BATCHES_AHEAD = 2
# Of a step's images and labels.
FEED_SPECS = (PER_DEVICE, PER_DEVICE)

Batch = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class Resident:
    """The training set on every device of a mesh: uint8 [N, height, width, channels], int32 [N]; or their shapes."""

    images: Any
    labels: Any

    feed_shapes = ()

    @property
    def arguments(self) -> tuple[Any, Any]:
        """Of a loop over local steps."""
        return self.images, self.labels

    def feed(self, round_number: Any) -> None:
        """Nothing is fed."""
        return None

    def close(self) -> None:
        """Nothing to end."""


class Streamed:
    """Training batches of a streamed data set: what each device needs for each step, from readers that go ahead.

    Readers start with the first round that is asked for, and go on from round to round.

    Attributes:
      feed_shapes: of a step's images and labels, uint8 [devices * part, height, width, channels] and int32, where
        `part` is what one device sees.
    """

    arguments = ()

    def __init__(self, config: Config, dataset: StreamedDataset, mesh: Mesh):
        self._config, self._dataset, self._mesh = config, dataset, mesh
        self._part = config.data.batch_size // mesh.shape[DATA]
        self.feed_shapes = batch_shapes(mesh, self._part, dataset.image_shape)
        self._plan = TrainingPlan(
            seed=config.seed,
            split=config.data.split,
            workers=config.loft.workers,
            examples=dataset.examples,
            rounds=config.train.rounds,
            local_steps=config.loft.local_steps,
            batch_size=config.data.batch_size,
            slots=config.loft.workers // mesh.shape[WORKER],
            data_shards=mesh.shape[DATA],
            devices=own_devices(mesh),
            chunk_size=chunk_size(self._part, dataset.image_shape),
        )
        self._stream: Stream | None = None
        self._next_round = 0

    def feed(self, round_number: Any) -> Iterator[Batch]:
        """The batches of a round, in the order of a device's slots and their steps."""
        number, plan = int(round_number), self._plan
        if self._stream is None or number != self._next_round:
            self.close()
            start = number * plan.chunks_per_round
            crop = (self._config.seed, Purpose.AUGMENTATION) if self._config.data.augment else None
            ahead = BATCHES_AHEAD * plan.chunks_per_round // (plan.slots * plan.local_steps)
            self._stream = self._dataset.stream("train", plan, crop=crop, start=start, ahead=ahead)
        self._next_round = number + 1
        return fed(self._stream, plan.slots * plan.local_steps, self._mesh, self._part, self._dataset.image_shape)

    def close(self) -> None:
        """Ends the readers."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


TrainingData = Resident | Streamed


def training_specs(dataset: AnyDataset, mesh: Mesh) -> dict[str, tuple[PartitionSpec, ...]]:
    """How `arguments` and a feed lie on a mesh, to a loop over local steps: "arguments" and "feed"."""
    if not dataset.streamed:
        return {"arguments": (REPLICATED, REPLICATED), "feed": ()}
    # Alone, a worker's device must not seem to differ from others of that worker.
    spec = PER_DEVICE if mesh.shape[DATA] > 1 else PER_WORKER
    return {"arguments": (), "feed": (spec, spec)}


def training_data(config: Config, dataset: AnyDataset, mesh: Mesh) -> TrainingData:
    """Of a run, ready to train on."""
    if dataset.streamed:
        return Streamed(config, dataset, mesh)
    return Resident(*(replicate(array, mesh) for array in (dataset.train_images, dataset.train_labels)))


def training_shapes(config: Config, dataset: AnyDataset, mesh: Mesh) -> TrainingData:
    """The same to lower programs for: nothing is put on a device."""
    if dataset.streamed:
        return Streamed(config, dataset, mesh)
    arrays = (dataset.train_images, dataset.train_labels)
    return Resident(*shapes_on(NamedSharding(mesh, REPLICATED), arrays))


class FixedFeed:
    """Listed images, the same at every call, streamed to a mesh.

    Args:
      split: "train" or "test".
      order: examples, int [n].
      positions: int [steps, devices, part]: what each device of the mesh gets, as places in `order`; -1 for a black
        image of label -1.
      crop: (seed, purpose) of random crops; None for the middle.
    """

    def __init__(
        self,
        dataset: StreamedDataset,
        mesh: Mesh,
        split: str,
        order: np.ndarray,
        positions: np.ndarray,
        crop: tuple[int, int] | None = None,
    ):
        self._dataset, self._mesh, self._split, self._crop = dataset, mesh, split, crop
        self._steps, _, self._part = positions.shape
        own = positions[:, list(own_devices(mesh))]
        self._plan = FixedPlan(order, own, chunk_size(self._part, dataset.image_shape))

    def __call__(self) -> Iterator[Batch]:
        """The batch of each step; readers live as long as the iteration."""
        ahead = BATCHES_AHEAD * len(self._plan) // self._steps
        with self._dataset.stream(self._split, self._plan, crop=self._crop, ahead=ahead) as stream:
            yield from fed(stream, self._steps, self._mesh, self._part, self._dataset.image_shape)


def own_devices(mesh: Mesh) -> tuple[int, ...]:
    """This process's devices, as places in the mesh's (worker, data) order."""
    own = jax.process_index()
    return tuple(place for place, device in enumerate(mesh.devices.flat) if device.process_index == own)


def batch_shapes(mesh: Mesh, part: int, image_shape: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Of a step's images and labels on a mesh, `part` of them on a device."""
    sharding, count = NamedSharding(mesh, PER_DEVICE), mesh.size * part
    return (
        jax.ShapeDtypeStruct((count, *image_shape), np.uint8, sharding=sharding),
        jax.ShapeDtypeStruct((count,), np.int32, sharding=sharding),
    )


def fed(stream: Stream, steps: int, mesh: Mesh, part: int, image_shape: tuple[int, ...]) -> Iterator[Batch]:
    """So many batches of a stream, each device's part of them on that device."""
    shapes = batch_shapes(mesh, part, image_shape)
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    for _ in range(steps):
        # New memory for each: the devices may still read the last batch's.
        parts = [(np.empty((part, *image_shape), np.uint8), np.empty(part, np.int32)) for _ in devices]
        for images, labels in parts:
            done = 0
            while done < part:
                done += stream.fill(images[done:], labels[done:])
        placed = [jax.device_put(list(own), devices) for own in zip(*parts, strict=True)]
        yield tuple(
            jax.make_array_from_single_device_arrays(shape.shape, shape.sharding, own)
            for shape, own in zip(shapes, placed, strict=True)
        )
