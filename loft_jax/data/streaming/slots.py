"""Shared memory between reader processes, which write to it, and the run's process: a ring of slots for each reader.

Without this, Grain makes a new file of shared memory for every array that it sends, and does not remove all of them if
it is closed early. Here Grain sends only the number of images in a chunk.
"""

import contextlib
import multiprocessing
import os
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.errors import UserError
from loft_jax.files import claim_new, clear_leftovers

_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "loft_jax_"
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
        place = _shared_memory(readers)
        # A run that was killed together with its readers has left its memory.
        clear_leftovers(place, f"{_PREFIX}*")
        handle, self.path = claim_new(place, _PREFIX)
        try:
            # Reserve all of it now: otherwise a process that writes where memory is missing would be killed.
            os.posix_fallocate(handle, 0, self._layout[-1])
        except OSError as error:
            _remove(self.path, handle)
            raise UserError(
                f"data.readers={readers}: they need {self._layout[-1] / 2**20:.0f} MiB of shared memory in "
                f"{place} ({error.strerror}); use fewer (0: threads, which need none), or make it "
                "larger (docker run --shm-size)"
            ) from None
        # A process that ends without closing its stream leaves nothing either.
        self._remove = weakref.finalize(self, _remove, self.path, handle)
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_header", "_images", "_labels", "_remove")
        }

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
        self._remove()

    def unlink(self) -> None:
        """Remove the file of the memory, if it still exists."""
        self.path.unlink(missing_ok=True)


def can_share_memory() -> bool:
    """Whether processes can share memory here: locks too, which the system keeps in a place of its own."""
    try:
        multiprocessing.get_context("spawn").Lock()
        return _find_place() is not None
    except (ImportError, OSError):
        return False


def _shared_memory(readers: int) -> Path:
    place = _find_place() if can_share_memory() else None
    if place is None:
        raise UserError(
            f"data.readers={readers}: processes cannot share memory here, because {_SHARED_MEMORY} is missing or "
            "cannot be written; use data.readers=0: threads, which need none"
        )
    return place


def _find_place() -> Path | None:
    """Return where files of shared memory go: in memory, or where temporary files are."""
    places = (_SHARED_MEMORY, Path(tempfile.gettempdir()))
    return next((place for place in places if place.is_dir() and os.access(place, os.W_OK | os.X_OK)), None)


def _remove(path: Path, handle: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
    os.close(handle)
