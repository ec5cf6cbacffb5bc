"""The images that a process of the run needs, chunk by chunk: arithmetic on the number of a chunk.

A chunk is a part of what one device gets for one step. Reader processes work on different chunks and share nothing, so
what they read depends neither on their number nor on where a run was resumed.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from loft_jax.data.batches import epoch_length, epoch_permutation
from loft_jax.randomness import Purpose, key_for


@dataclass(frozen=True)
class Chunk:
    """Images that a reader reads together.

    Attributes:
      indices: int [k], examples of the split; -1 for a black image without a label.
      worker, positions: whose stream of examples they are from, and their places in it, int [k].
    """

    indices: np.ndarray
    worker: int
    positions: np.ndarray


class Schedule(Protocol):
    """`len(schedule)` chunks of `chunk_size` images; the last one of a device's part of a step may be smaller."""

    @property
    def chunk_size(self) -> int: ...

    def __len__(self) -> int: ...

    def chunk(self, number: int) -> Chunk: ...


@dataclass(frozen=True)
class TrainingSchedule:
    """The chunks of local steps: by round, turn, step, device, and chunk of the device's part of the batch.

    Attributes:
      seed, split, workers, examples: decide the order of examples, as in `batches.worker_order`.
      rounds, local_steps, batch_size: settings of the run.
      turns: number of workers that a device trains, one after another.
      data_shards: devices that share a batch.
      devices: devices of this process, as places in the mesh's (worker, data) order.
      chunk_size: images of a chunk.
    """

    seed: int
    split: str
    workers: int
    examples: int
    rounds: int
    local_steps: int
    batch_size: int
    turns: int
    data_shards: int
    devices: tuple[int, ...]
    chunk_size: int

    @property
    def chunks_per_round(self) -> int:
        """Number of chunks of a round; round r begins with chunk r times this."""
        return self.turns * self.local_steps * len(self.devices) * self._chunks_per_part

    def __len__(self) -> int:
        return self.rounds * self.chunks_per_round

    def chunk(self, number: int) -> Chunk:
        """Return the chunk that has this number in the run."""
        rest, chunk = divmod(number, self._chunks_per_part)
        rest, place = divmod(rest, len(self.devices))
        rest, step = divmod(rest, self.local_steps)
        round_number, turn = divmod(rest, self.turns)
        row, shard = divmod(self.devices[place], self.data_shards)
        worker = row * self.turns + turn
        before = (round_number * self.local_steps + step) * self.batch_size + shard * self._part
        first = chunk * self.chunk_size
        positions = before + np.arange(first, min(first + self.chunk_size, self._part))
        return Chunk(self.indices(worker, positions), worker, positions)

    def indices(self, worker: int, positions: np.ndarray) -> np.ndarray:
        """Return the examples at these positions of the endless stream that a worker reads."""
        per_epoch = epoch_length(self.examples, self.workers, self.split)
        offset = worker * per_epoch if self.split == "disjoint" else 0
        order_of = worker if self.split == "shared" else 0
        epochs, within = np.divmod(positions, per_epoch)
        indices = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order = _permutation(self.seed, order_of, int(epoch), self.examples, self.split)
            indices[here] = order[offset + within[here]]
        return indices

    @property
    def _part(self) -> int:
        return self.batch_size // self.data_shards

    @property
    def _chunks_per_part(self) -> int:
        return -(-self._part // self.chunk_size)


# On ImageNet each has some megabytes and takes a second; a process reads for a few workers, each in an epoch or two.
@lru_cache(maxsize=32)
def _permutation(seed: int, worker: int, epoch: int, examples: int, split: str) -> np.ndarray:
    key = key_for(seed, Purpose.ORDER)
    return np.asarray(_jitted_permutation(key, jnp.int32(worker), jnp.int32(epoch), examples, split))


_jitted_permutation = jax.jit(epoch_permutation, static_argnames=("examples", "split"))


@dataclass(frozen=True, eq=False)
class FixedSchedule:
    """The chunks of steps whose images are listed.

    Attributes:
      order: examples, int [n].
      positions: int [steps, devices, part]: what each of this process's devices gets, as places in `order`; -1 for a
        black image without a label.
      chunk_size: images of a chunk.
    """

    order: np.ndarray
    positions: np.ndarray
    chunk_size: int

    def __len__(self) -> int:
        steps, devices, _ = self.positions.shape
        return steps * devices * self._chunks_per_part

    def chunk(self, number: int) -> Chunk:
        """Return the chunk that has this number in the list."""
        rest, chunk = divmod(number, self._chunks_per_part)
        step, device = divmod(rest, self.positions.shape[1])
        first = chunk * self.chunk_size
        positions = self.positions[step, device, first : first + self.chunk_size]
        return Chunk(np.where(positions < 0, -1, self.order[positions]), 0, positions)

    @property
    def _chunks_per_part(self) -> int:
        return -(-self.positions.shape[2] // self.chunk_size)
