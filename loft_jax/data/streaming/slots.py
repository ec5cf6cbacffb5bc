"""Shared memory between reader processes, which write to it, and the run's process: a ring of slots for each reader.

Without this, Grain makes a new file of shared memory for every array that it sends, and does not remove all of them if
it is closed early. Here Grain sends only the number of images in a chunk.
"""

import contextlib
import os
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.errors import UserError

_SHARED_MEMORY = Path("/dev/shm")
_POLL_SECONDS = 0.001


class ClosedError(Exception):
    """The run's process needs no further chunks."""


class Slots:
    """Slots for chunks of images and labels, in a file in memory; a pickled copy uses the same memory elsewhere.

    Args:
      readers: number of processes that write; depth: number of slots of each.
      chunk_size, image_shape: the images in a slot are [chunk_size, height, width, channels].

    Raises:
      UserError: there is not enough shared memory.
    """

    def __init__(self, readers: int, depth: int, chunk_size: int, image_shape: tuple[int, ...]):
        self._readers, self.depth = readers, depth
        self._chunk = (chunk_size, *image_shape)
        place = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
        handle, self.path = tempfile.mkstemp(prefix="loft_jax_", dir=place)
        try:
            # Reserve all of it now: otherwise a process that writes where memory is missing would be killed.
            os.posix_fallocate(handle, 0, self._layout[-1])
        except OSError as error:
            os.unlink(self.path)
            raise UserError(
                f"data.readers={readers}: they need {self._layout[-1] / 2**20:.0f} MiB of shared memory in "
                f"{Path(self.path).parent} ({error.strerror}); use fewer (0: threads, which need none), or make it "
                "larger (docker run --shm-size)"
            ) from None
        finally:
            os.close(handle)
        # A process that ends without closing its stream leaves nothing either.
        weakref.finalize(self, _remove, self.path)
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_header", "_images", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    @property
    def _layout(self) -> tuple[int, int, int]:
        """Positions in the file, in bytes: the start of labels, the start of images, and the end."""
        slots = self._readers * self.depth
        labels = 8 * (1 + self._readers)
        images = labels + 4 * slots * self._chunk[0]
        return labels, images, images + slots * int(np.prod(self._chunk))

    def _map(self) -> None:
        memory = np.memmap(self.path, mode="r+")
        labels, images, end = self._layout
        # Whether the slots are closed, and how many chunks of each reader the run's process has released.
        self._header = memory[:labels].view(np.int64)
        self._labels = memory[labels:images].view(np.int32).reshape(self._readers, self.depth, -1)
        self._images = memory[images:end].reshape(self._readers, self.depth, *self._chunk)

    @property
    def closed(self) -> bool:
        """Whether the run's process needs no further chunks."""
        return bool(self._header[0])

    def wait_for_slot(self, reader: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Wait until the slot for a reader's n-th chunk is free; return its (images, labels). Raises ClosedError."""
        while number - self._header[1 + reader] >= self.depth and not self.closed:
            time.sleep(_POLL_SECONDS)
        if self.closed:
            raise ClosedError
        return self.slot(reader, number)

    def slot(self, reader: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (images, labels) of the slot for a reader's n-th chunk; the data are valid until it is released."""
        return self._images[reader, number % self.depth], self._labels[reader, number % self.depth]

    def release(self, reader: int) -> None:
        """Free the slot of a reader's oldest chunk, which has been copied."""
        self._header[1 + reader] += 1

    def close(self) -> None:
        """Make readers stop waiting; the memory is freed when the last process no longer maps it."""
        self._header[0] = 1
        self.unlink()

    def unlink(self) -> None:
        """Remove the file of the memory, if it still exists."""
        _remove(self.path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
