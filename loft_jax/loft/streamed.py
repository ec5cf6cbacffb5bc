"""Images that readers decode when they are needed: see `loft_jax.loft.images`."""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.data import FixedSchedule, Stream, StreamedDataset, TrainingSchedule, chunk_size
from loft_jax.devices import DATA, PER_DEVICE, PER_WORKER, WORKER
from loft_jax.loft.orders import norm_order, split_test
from loft_jax.randomness import Purpose

# Batches that readers keep ready in host memory.
BATCHES_AHEAD = 2

Batch = tuple[jax.Array, ...]


class StreamedImages:
    """Images that readers decode when they are needed; each device gets its part of each step's batch."""

    def __init__(self, config: Config, dataset: StreamedDataset, mesh: Mesh):
        self._config, self._dataset, self._mesh = config, dataset, mesh

    @cached_property
    def training(self) -> "StreamedTraining":
        """Batches for local steps, from readers that work ahead: each worker has an order of its own."""
        return StreamedTraining(self._config, self._dataset, self._mesh)

    @cached_property
    def norms(self) -> "ListedBatches":
        """Batches in the order of `norm_order`, cropped as in training."""
        config, mesh, dataset = self._config, self._mesh, self._dataset
        batches, size = config.train.norm_batches, config.data.batch_size
        steps = math.ceil(batches / mesh.size)
        positions = np.full((steps * mesh.size, size), -1)
        positions[:batches] = np.arange(batches * size).reshape(batches, -1)
        positions = positions.reshape(steps, mesh.size, size)
        crop = (config.seed, Purpose.NORM_STATISTICS) if config.data.augment else None
        order = np.asarray(jax.jit(lambda: norm_order(config, dataset.examples))()).ravel()
        return ListedBatches(dataset, mesh, "train", order, positions, crop)

    @cached_property
    def test(self) -> "ListedBatches":
        """Batches of the test images, one after another."""
        examples = self._dataset.test_examples
        steps, batch, padding = split_test(self._config, examples, self._mesh)
        numbers = np.pad(np.arange(examples), (0, padding), constant_values=-1)
        positions = numbers.reshape(self._mesh.size, steps, batch).swapaxes(0, 1)
        return ListedBatches(self._dataset, self._mesh, "test", np.arange(examples), positions)

    @property
    def validation(self) -> "ListedBatches":
        """Raise ValueError: no images are held out of streamed ones."""
        raise ValueError("streamed data sets have no images for validation")

    def close(self) -> None:
        """Stop the readers of training batches; other readers stop when their loop ends."""
        self.training.close()


class _StreamedBatches:
    """Batches that are arguments of single steps."""

    arguments = argument_specs = ()

    def begin(self, *place: jax.Array) -> dict[str, Any]:
        return {}

    def pick(self, prepared: dict[str, Any], step: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels = arguments
        return images, labels


class StreamedTraining(_StreamedBatches):
    """Training batches of a streamed data set.

    Readers start at the first round that is asked for, and continue from round to round.
    """

    def __init__(self, config: Config, dataset: StreamedDataset, mesh: Mesh):
        self._config, self._dataset, self._mesh = config, dataset, mesh
        self._part = config.data.batch_size // mesh.shape[DATA]
        self.feed_shapes = batch_shapes(mesh, self._part, dataset.image_shape)
        # With one device for each worker, nothing may seem to differ along the data axis.
        self.feed_specs = (PER_DEVICE if mesh.shape[DATA] > 1 else PER_WORKER,) * 2
        self._schedule = TrainingSchedule(
            seed=config.seed,
            split=config.data.split,
            workers=config.loft.workers,
            examples=dataset.examples,
            rounds=config.train.rounds,
            local_steps=config.loft.local_steps,
            batch_size=config.data.batch_size,
            turns=config.loft.workers // mesh.shape[WORKER],
            data_shards=mesh.shape[DATA],
            devices=own_devices(mesh),
            chunk_size=chunk_size(self._part, dataset.image_shape),
        )
        self._stream: Stream | None = None
        self._next_round = 0

    def feed(self, round_number: Any = 0) -> AbstractContextManager[Iterator[Batch]]:
        """Open the batches of a round, in the order of a device's turns and their steps."""
        number, schedule = int(round_number), self._schedule
        if self._stream is None or number != self._next_round:
            self.close()
            start = number * schedule.chunks_per_round
            crop = (self._config.seed, Purpose.AUGMENTATION) if self._config.data.augment else None
            ahead = BATCHES_AHEAD * schedule.chunks_per_round // (schedule.turns * schedule.local_steps)
            self._stream = self._dataset.stream("train", schedule, crop=crop, start=start, ahead=ahead)
        self._next_round = number + 1
        steps = schedule.turns * schedule.local_steps
        return nullcontext(place_batches(self._stream, steps, self._mesh, self._part, self._dataset.image_shape))

    def close(self) -> None:
        """Stop the readers."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class ListedBatches(_StreamedBatches):
    """Images in a given order, the same at every call, streamed to a mesh.

    Args:
      split: "train" or "test".
      order: examples, int [n].
      positions: int [steps, devices, part]: what each device of the mesh gets, as places in `order`; -1 for a black
        image with label -1.
      crop: (seed, purpose) of random crops; None to crop the middle.
    """

    feed_specs = (PER_DEVICE, PER_DEVICE)

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
        self.feed_shapes = batch_shapes(mesh, self._part, dataset.image_shape)
        own = positions[:, list(own_devices(mesh))]
        self._schedule = FixedSchedule(order, own, chunk_size(self._part, dataset.image_shape))

    @contextmanager
    def feed(self, round_number: Any = 0) -> Generator[Iterator[Batch]]:
        """Open the batches of the steps; the readers stop when the `with` block ends."""
        ahead = BATCHES_AHEAD * len(self._schedule) // self._steps
        with self._dataset.stream(self._split, self._schedule, crop=self._crop, ahead=ahead) as stream:
            yield place_batches(stream, self._steps, self._mesh, self._part, self._dataset.image_shape)


def own_devices(mesh: Mesh) -> tuple[int, ...]:
    """Return the devices of this process, as places in the mesh's (worker, data) order."""
    own = jax.process_index()
    return tuple(place for place, device in enumerate(mesh.devices.flat) if device.process_index == own)


def batch_shapes(mesh: Mesh, part: int, image_shape: Sequence[int]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes of a step's images and labels on a mesh, with `part` of them on each device."""
    sharding, count = NamedSharding(mesh, PER_DEVICE), mesh.size * part
    return (
        jax.ShapeDtypeStruct((count, *image_shape), np.uint8, sharding=sharding),
        jax.ShapeDtypeStruct((count,), np.int32, sharding=sharding),
    )


def place_batches(stream: Stream, steps: int, mesh: Mesh, part: int, image_shape: Sequence[int]) -> Iterator[Batch]:
    """Put the batches of so many steps on the mesh, each device's part on that device."""
    shapes = batch_shapes(mesh, part, image_shape)
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    for _ in range(steps):
        # New memory for each batch: the devices may still read that of the last one.
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
