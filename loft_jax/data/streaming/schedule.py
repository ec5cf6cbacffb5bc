"""Which images a process of the run needs next, chunk by chunk: plain arithmetic on the number of a chunk.

A chunk is part of what one device gets for one step. Reader processes work on different chunks and share nothing, so
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
    """Images that belong together.

    Attributes:
      indices: int [k], examples of the split; -1 for a black image without a label.
      worker, positions: the stream of examples that they are from, and where in it, int [k].
    """

    indices: np.ndarray
    worker: int
    positions: np.ndarray


class Plan(Protocol):
    """`len(plan)` chunks, `plan.chunk(n)` the n-th; `chunk_size` images, but for the last of a device's part."""

    @property
    def chunk_size(self) -> int: ...

    def __len__(self) -> int: ...

    def chunk(self, number: int) -> Chunk: ...


@dataclass(frozen=True)
class TrainingPlan:
    """Of local steps: by round, slot of a device, step, device, and chunk of the device's part of the batch.

    Attributes:
      seed, split, workers, examples: whose order, as of `batches.worker_order`.
      rounds, local_steps, batch_size: of the run.
      slots: workers that a device trains, one after another.
      data_shards: devices that share a batch.
      devices: this process's, as places in the mesh's (worker, data) order.
      chunk_size: images.
    """

    seed: int
    split: str
    workers: int
    examples: int
    rounds: int
    local_steps: int
    batch_size: int
    slots: int
    data_shards: int
    devices: tuple[int, ...]
    chunk_size: int

    @property
    def chunks_per_round(self) -> int:
        """The first chunk of round r is r times this."""
        return self.slots * self.local_steps * len(self.devices) * self._chunks_per_part

    def __len__(self) -> int:
        return self.rounds * self.chunks_per_round

    def chunk(self, number: int) -> Chunk:
        """Of a chunk's number in the run."""
        rest, chunk = divmod(number, self._chunks_per_part)
        rest, place = divmod(rest, len(self.devices))
        rest, step = divmod(rest, self.local_steps)
        round_number, slot = divmod(rest, self.slots)
        row, shard = divmod(self.devices[place], self.data_shards)
        worker = row * self.slots + slot
        before = (round_number * self.local_steps + step) * self.batch_size + shard * self._part
        first = chunk * self.chunk_size
        positions = before + np.arange(first, min(first + self.chunk_size, self._part))
        return Chunk(self.indices(worker, positions), worker, positions)

    def indices(self, worker: int, positions: np.ndarray) -> np.ndarray:
        """The examples at some positions of the endless stream that a worker reads."""
        per_epoch = epoch_length(self.examples, self.workers, self.split)
        offset = worker * per_epoch if self.split == "disjoint" else 0
        of = worker if self.split == "shared" else 0
        epochs, within = np.divmod(positions, per_epoch)
        indices = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order = _permutation(self.seed, of, int(epoch), self.examples, self.split)
            indices[here] = order[offset + within[here]]
        return indices

    @property
    def _part(self) -> int:
        return self.batch_size // self.data_shards

    @property
    def _chunks_per_part(self) -> int:
        return -(-self._part // self.chunk_size)


# Some megabytes each on ImageNet, and a second to make; a process reads for a few workers, in an epoch or two each.
@lru_cache(maxsize=32)
def _permutation(seed: int, worker: int, epoch: int, examples: int, split: str) -> np.ndarray:
    key = key_for(seed, Purpose.ORDER)
    return np.asarray(_jitted_permutation(key, jnp.int32(worker), jnp.int32(epoch), examples, split))


_jitted_permutation = jax.jit(epoch_permutation, static_argnames=("examples", "split"))


@dataclass(frozen=True, eq=False)
class FixedPlan:
    """Of steps whose images are listed.

    Attributes:
      order: examples, int [n].
      positions: int [steps, devices, part]: what each of this process's devices gets, as places in `order`; -1 for a
        black image without a label.
      chunk_size: images.
    """

    order: np.ndarray
    positions: np.ndarray
    chunk_size: int

    def __len__(self) -> int:
        steps, devices, _ = self.positions.shape
        return steps * devices * self._chunks_per_part

    def chunk(self, number: int) -> Chunk:
        """Of a chunk's number in the list."""
        rest, chunk = divmod(number, self._chunks_per_part)
        step, device = divmod(rest, self.positions.shape[1])
        first = chunk * self.chunk_size
        positions = self.positions[step, device, first : first + self.chunk_size]
        return Chunk(np.where(positions < 0, -1, self.order[positions]), 0, positions)

    @property
    def _chunks_per_part(self) -> int:
        return -(-self.positions.shape[2] // self.chunk_size)
