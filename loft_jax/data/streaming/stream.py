"""Chunks of images, read in order by processes or threads that Grain runs."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

import jax
import numpy as np

from loft_jax.data.streaming.schedule import Schedule
from loft_jax.data.streaming.slots import Slots
from loft_jax.data.streaming.stored import StoredImages
from loft_jax.errors import RunStopped

_CHUNK_BYTES = 4 * 2**20
_WATCH_SECONDS = 0.1


def chunk_size(part: int, image_shape: tuple[int, ...]) -> int:
    """Images of a chunk, where a device gets `part` of them in a step: some megabytes, in equal parts."""
    most = max(1, _CHUNK_BYTES // math.prod(image_shape))
    return math.ceil(part / math.ceil(part / most))


def default_readers() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Reading:
    """The images of a schedule, as Grain asks for them: chunk by chunk, in any order.

    Attributes:
      images: where they are.
      schedule: which of them, and in what order.
      crop: (seed, purpose) of the random crops of images of mixed sizes; None for their middle.
    """

    images: StoredImages
    schedule: Schedule
    crop: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((self.schedule.chunk_size, *self.images.image_shape), np.uint8)
        labels = np.empty(self.schedule.chunk_size, np.int32)
        count = self.fill(index, images, labels)
        return images[:count], labels[:count]

    def fill(self, number: int, images: np.ndarray, labels: np.ndarray) -> int:
        """Write the n-th chunk to the start of both, and return how many images it has."""
        chunk, generators = self.schedule.chunk(number), None
        if self.crop is not None and self.images.mixed:
            # A function of the example's place in its worker's stream alone, whoever reads it.
            generators = [
                np.random.default_rng([*self.crop, chunk.worker, max(0, int(position))]) for position in chunk.positions
            ]
        count = len(chunk.indices)
        self.images.read(chunk.indices, images[:count], labels[:count], generators)
        return count


@dataclass(frozen=True)
class _SlottedReading:
    """A reading whose chunks are left in slots; what is sent is the number of images."""

    reading: Reading
    slots: Slots
    readers: int
    start: int

    def __len__(self) -> int:
        return len(self.reading)

    def __getitem__(self, index: int) -> int:
        # Grain gives every reader each so many-th chunk.
        nth, reader = divmod(index - self.start, self.readers)
        return self.reading.fill(index, *self.slots.free(reader, nth))


class Stream:
    """The chunks of a reading, from one of them on. Use as a context manager, or close.

    Args:
      reading: what to read.
      readers: processes; 0 for threads of this one.
      start: number of the first chunk.
      ahead: chunks to have ready.
    """

    def __init__(self, reading: Reading, readers: int, start: int = 0, ahead: int = 2):
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain reads its own.
            flags.FLAGS.mark_as_parsed()
        self._reading, self._next, self._slots = reading, 0, None
        left = len(reading) - start
        self._readers = readers = min(readers, left)
        if not readers:
            threads = min(default_readers(), left)
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
            self._iterator = iter(grain.MapDataset.source(reading)[start:].to_iter_dataset(options))
            return
        depth = max(2, math.ceil(ahead / readers) + 1)
        self._slots = Slots(readers, depth, reading.schedule.chunk_size, reading.images.image_shape)
        source = grain.MapDataset.source(_SlottedReading(reading, self._slots, readers, start))
        # No threads: they would make chunks out of turn, and wait for slots that their turn must free.
        dataset = source[start:].to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        options = grain.MultiprocessingOptions(num_workers=readers, per_worker_buffer_size=depth)
        slots = self._slots
        self._iterator = iter(dataset.mp_prefetch(options, worker_init_fn=lambda *_: _prepare_reader(slots)))

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def fill(self, images: np.ndarray, labels: np.ndarray) -> int:
        """Copy the next chunk to the start of both, and return how many images it has.

        Raises:
          UserError: an image cannot be decoded.
          RunStopped: a reader has died.
        """
        # The first call starts the readers.
        with nullcontext() if self._next else _children_without_signals():
            chunk = self._next_chunk()
        if self._slots is None:
            count = len(chunk[0])
            images[:count], labels[:count] = chunk
        else:
            count, (nth, reader) = chunk, divmod(self._next, self._readers)
            filled = self._slots.filled(reader, nth)
            images[:count], labels[:count] = filled[0][:count], filled[1][:count]
            self._slots.take_out(reader)
        self._next += 1
        return count

    def _next_chunk(self) -> Any:
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise RunStopped(
                f"a process that reads {self._reading.images.name} has died ({str(error).split('. ')[0]}); where "
                "memory ran out, use fewer with data.readers. The same command resumes from the last checkpoint"
            ) from None

    def close(self) -> None:
        """Ends the readers; call it more than once if you like."""
        if self._slots is not None:
            self._slots.close()
        self._iterator.close()


@contextmanager
def _children_without_signals() -> Generator[None]:
    """Processes started here never see Ctrl-C or SIGTERM, which reach a terminal's or a job's processes all at once.

    What ends them is the run, which does what such a signal asks for, and its end. Blocked rather than ignored by the
    children themselves, which take seconds to start.
    """
    # Started within, it would unblock them on its way.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_reader(slots: Slots) -> None:
    """Runs first in a reader process."""
    # The order of examples is computed with JAX; the accelerators are the run's.
    jax.config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with_the_run, args=(slots,), daemon=True).start()


def _end_with_the_run(slots: Slots) -> None:
    """At once, when the run has closed the slots or is gone: nothing is lost, and Python takes seconds to end."""
    # Not `is_alive` or `join`: they import, and while TFDS is imported what other threads import is not what they get.
    run = multiprocessing.parent_process()
    assert run is not None  # This is a reader's process.
    while not slots.closed and not wait([run.sentinel], _WATCH_SECONDS):
        pass
    # Killed, the run could not do this.
    slots.unlink()
    # Not 0: Grain would take that for a reader that still has something to give, and wait for it when it is closed.
    os._exit(1)
