"""Memory that reader processes fill and the run's process empties: a ring of slots for each reader.

Grain by itself makes a new file of shared memory for every array that it sends, and leaves some behind when it is
closed early. Here it sends nothing but the number of images in a chunk.
"""

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.errors import UserError

_SHARED_MEMORY = Path("/dev/shm")
_POLL_SECONDS = 0.001


class ClosedError(Exception):
    """The run's process has no use for further chunks."""


class Slots:
    """Chunks of images and labels, in a file in memory; pickled, it is the same memory in another process.

    Args:
      readers: processes that fill; depth: slots of each.
      chunk_size, image_shape: of the images in a slot, [chunk_size, height, width, channels].

    Raises:
      UserError: there is not so much memory of this kind.
    """

    def __init__(self, readers: int, depth: int, chunk_size: int, image_shape: tuple[int, ...]):
        self._readers, self.depth = readers, depth
        self._chunk = (chunk_size, *image_shape)
        place = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
        handle, self.path = tempfile.mkstemp(prefix="loft_jax_", dir=place)
        try:
            # Taken now: what is missing would else kill a process when it writes there.
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
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_header", "_images", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    @property
    def _layout(self) -> tuple[int, int, int]:
        """Where labels and images begin, and the end, in bytes."""
        slots = self._readers * self.depth
        labels = 8 * (1 + self._readers)
        images = labels + 4 * slots * self._chunk[0]
        return labels, images, images + slots * int(np.prod(self._chunk))

    def _map(self) -> None:
        memory = np.memmap(self.path, mode="r+")
        labels, images, end = self._layout
        # Whether all is over, and how many chunks of each reader have been taken out.
        self._header = memory[:labels].view(np.int64)
        self._labels = memory[labels:images].view(np.int32).reshape(self._readers, self.depth, -1)
        self._images = memory[images:end].reshape(self._readers, self.depth, *self._chunk)

    @property
    def closed(self) -> bool:
        """Whether the run's process has no use for further chunks."""
        return bool(self._header[0])

    def free(self, reader: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(images, labels) to fill with a reader's n-th chunk, as soon as there is room. Raises ClosedError."""
        while number - self._header[1 + reader] >= self.depth and not self.closed:
            time.sleep(_POLL_SECONDS)
        if self.closed:
            raise ClosedError
        return self.filled(reader, number)

    def filled(self, reader: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(images, labels) of a reader's n-th chunk, until it is taken out."""
        return self._images[reader, number % self.depth], self._labels[reader, number % self.depth]

    def take_out(self, reader: int) -> None:
        """The oldest chunk of a reader has been copied."""
        self._header[1 + reader] += 1

    def close(self) -> None:
        """Readers stop waiting; the memory is given back when the last process lets go of it."""
        self._header[0] = 1
        self.unlink()

    def unlink(self) -> None:
        """Remove the name of the memory, if it is still there."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
