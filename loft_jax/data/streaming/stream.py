"""Chunks of images, in order, read by processes or threads that Grain runs."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

import jax
import numpy as np

from loft_jax.arithmetic import fix_arithmetic
from loft_jax.data.streaming.schedule import Schedule
from loft_jax.data.streaming.slots import Slots, can_share_memory
from loft_jax.data.streaming.stored import StoredImages
from loft_jax.errors import RunStopped

_CHUNK_BYTES = 4 * 2**20
_WATCH_SECONDS = 0.1


def chunk_size(part: int, image_shape: tuple[int, ...]) -> int:
    """Return the size of a chunk: the `part` images of a device in a step, split evenly into at most 4 MiB each."""
    most = max(1, _CHUNK_BYTES // math.prod(image_shape))
    return math.ceil(part / math.ceil(part / most))


def default_readers() -> int:
    """Return the default number of readers: one for each core; 0, for threads, where processes share no memory."""
    return _usable_cores() if can_share_memory() else 0


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Reading:
    """The images of a schedule as a data source for Grain, which reads the chunks in any order.

    Attributes:
      images: where they are stored.
      schedule: which of them, and in what order.
      crop: (seed, purpose) of the random crops of images of mixed sizes; None to take the middle.
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
        """Write the n-th chunk to the start of both arrays, and return its number of images."""
        chunk, generators = self.schedule.chunk(number), None
        if self.crop is not None and self.images.mixed:
            # A crop depends only on the example's position in its worker's stream, not on the process that reads it.
            generators = [
                np.random.default_rng([*self.crop, chunk.worker, max(0, int(position))]) for position in chunk.positions
            ]
        count = len(chunk.indices)
        self.images.read(chunk.indices, images[:count], labels[:count], generators)
        return count


@dataclass(frozen=True)
class _SlottedReading:
    """A reading that writes its chunks to slots; Grain then sends only their numbers of images."""

    reading: Reading
    slots: Slots
    readers: int
    start: int

    def __len__(self) -> int:
        return len(self.reading)

    def __getitem__(self, index: int) -> int:
        # Grain gives the chunks to the readers in turn.
        nth, reader = divmod(index - self.start, self.readers)
        return self.reading.fill(index, *self.slots.wait_for_slot(reader, nth))


class Stream:
    """The chunks of a reading, from chunk `start` to the last. Use it as a context manager, or call `close`.

    Args:
      reading: what to read.
      readers: number of processes; 0 for threads of this process.
      start: number of the first chunk.
      ahead: number of chunks to read ahead.
    """

    def __init__(self, reading: Reading, readers: int, start: int = 0, ahead: int = 2):
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain reads its absl flags, which must have been parsed.
            flags.FLAGS.mark_as_parsed()
        self._reading, self._next, self._slots = reading, 0, None
        remaining = len(reading) - start
        self._readers = readers = min(readers, remaining)
        if not readers:
            threads = min(_usable_cores(), remaining)
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
            self._iterator = iter(grain.MapDataset.source(reading)[start:].to_iter_dataset(options))
            return
        depth = max(2, math.ceil(ahead / readers) + 1)
        self._slots = Slots(readers, depth, reading.schedule.chunk_size, reading.images.image_shape)
        source = grain.MapDataset.source(_SlottedReading(reading, self._slots, readers, start))
        # No threads: they would read chunks out of order, and wait for slots that are freed only in order.
        dataset = source[start:].to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        options = grain.MultiprocessingOptions(num_workers=readers, per_worker_buffer_size=depth)
        slots = self._slots
        self._iterator = iter(dataset.mp_prefetch(options, worker_init_fn=lambda *_: _prepare_reader(slots)))

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def fill(self, images: np.ndarray, labels: np.ndarray) -> int:
        """Copy the next chunk to the start of both arrays, and return its number of images.

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
            slot = self._slots.slot(reader, nth)
            images[:count], labels[:count] = slot[0][:count], slot[1][:count]
            self._slots.release(reader)
        self._next += 1
        return count

    def _next_chunk(self) -> Any:
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise RunStopped(
                f"a process that reads {self._reading.images.name} has died ({str(error).split('. ')[0]}); if memory "
                "ran out, use a smaller data.readers. Run the same command again to resume from the last checkpoint"
            ) from None

    def close(self) -> None:
        """End the readers; it may be called more than once."""
        if self._slots is not None:
            self._slots.close()
        self._iterator.close()


@contextmanager
def _children_without_signals() -> Generator[None]:
    """Block Ctrl-C, SIGTERM and SIGHUP in the processes that are started in this block.

    Such a signal goes to all processes of a terminal or of a job. Only the run should react to it; it ends its readers
    itself, and they also end when it has ended. Signals are blocked here, because a reader takes seconds to start and
    could not ignore them before that.
    """
    # Start the resource tracker first: if it started inside the block, it would unblock the signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_reader(slots: Slots) -> None:
    """Set up a reader process; Grain calls it first there."""
    # A reader computes the order of examples with JAX; it must not use the accelerators, which the run uses.
    jax.config.update("jax_platforms", "cpu")
    # The environment must not decide the order of examples here either. The run has said what has no effect.
    with redirect_stderr(None):
        fix_arithmetic()
    threading.Thread(target=_end_with_the_run, args=(slots,), daemon=True).start()


def _end_with_the_run(slots: Slots) -> None:
    """Exit at once when the run has closed the slots or has ended: no data are lost, and a normal exit takes long."""
    # Not `is_alive` or `join`: they import modules, and TFDS replaces imports in all threads while it is imported.
    run = multiprocessing.parent_process()
    assert run is not None  # This is a reader's process.
    while not slots.closed and not wait([run.sentinel], _WATCH_SECONDS):
        pass
    # If the run was killed, it has not removed the file.
    slots.unlink()
    # Not 0: Grain would think that this reader still has chunks to send, and wait for them when it is closed.
    os._exit(1)
