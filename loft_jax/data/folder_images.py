"""Image files of any mode and size, decoded by threads to pixels of one size.

The pixels are written to the cache directory; later processes map them into memory.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from loft_jax.console import SECONDS_BETWEEN_LINES, ProgressBar, shows_bars
from loft_jax.data.memory import ALPHA_DROPPED, BITS_SCALED, check_fits
from loft_jax.data.streaming.decode import middle_crop
from loft_jax.errors import UserError, format_value
from loft_jax.files import cached_arrays

_GREY = ("1", "L", "LA", "La", "I")
_GREY_TO_RGB = "grey became RGB"
# Files that a thread works on before it takes others.
_PIECE = 32
# More files than these are worth a progress bar.
_MANY = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class _Header:
    """What a file says about its image before it is decoded."""

    size: tuple[int, int]
    grey: bool
    notes: tuple[str, ...]


def read_images(files: Sequence[Path], root: Path, size: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode images, or read them from the cache directory.

    Args:
      files: at least one.
      root: directory of all of them; names in messages are relative to it.
      size: height and width to which each image is brought: its shorter side is resized, and the middle is taken. None
        if they have one size already.

    Returns:
      uint8 [files, height, width, channels], with one channel if all images are grey, otherwise three; and what was
      changed, in words.

    Raises:
      UserError: an image cannot be decoded, their sizes differ, or they do not fit on a device.
    """
    name = f"folder-{_digest(files, root, size)}"
    images, notes = cached_arrays(name, ("images", "notes"), lambda: _decode_all(files, root, size))
    return images, tuple(notes.tolist())


def _decode_all(files: Sequence[Path], root: Path, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    headers = list(_in_threads(lambda path: _read_header(path, root), files, "looked at"))
    channels = 1 if all(header.grey for header in headers) else 3
    width, height = (size, size) if size else _only_size(files, headers, root)
    advice = "lower data.image_size" if size else "set data.image_size to a smaller one"
    check_fits(
        len(files) * width * height * channels, f"{advice}, or prepare the data set with TFDS, which is streamed"
    )
    images = np.empty((len(files), height, width, channels), np.uint8)
    decoded = _in_threads(lambda path: _decode(path, root, size, channels), files, "decoded")
    for i, pixels in enumerate(decoded):
        images[i] = pixels
    return images, np.array(_count_notes(headers, channels), str)


def _digest(files: Sequence[Path], root: Path, size: int | None) -> str:
    """Return 16 hex digits that change when a file, its name, or the size does."""
    digest = hashlib.sha256(f"{root.resolve()} {size}".encode(errors="surrogateescape"))
    for path in files:
        stat = path.stat()
        text = f"|{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}"
        digest.update(text.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _read_header(path: Path, root: Path) -> _Header:
    with _opened(path, root) as image:
        if image.mode == "F":
            raise UserError(f"{_name(path, root)} has pixels of floating point; must have 8 or 16 bits")
        notes = []
        if image.mode.lower() in ("rgba", "la", "pa") or "transparency" in image.info:
            notes.append(ALPHA_DROPPED)
        # Pillow keeps 16 bits of grey images only; of others it keeps the high byte, as is done here.
        if image.mode.startswith("I") or ";16" in str(getattr(image, "tile", "")):
            notes.append(BITS_SCALED)
        return _Header(image.size, image.mode in _GREY or image.mode.startswith("I;"), tuple(notes))


def _only_size(files: Sequence[Path], headers: Sequence[_Header], root: Path) -> tuple[int, int]:
    """Return the (width, height) of all images. Raises UserError if they differ."""
    first = headers[0].size
    for path, header in zip(files, headers, strict=True):
        if header.size != first:
            sizes = ["x".join(map(str, size)) for size in (header.size, first)]
            smallest = min(min(h.size) for h in headers)
            raise UserError(
                f"holds images of mixed sizes: {_name(path, root)} is {sizes[0]}, and {_name(files[0], root)} is "
                f"{sizes[1]}; set data.image_size to the height and width that they get, as {smallest}"
            )
    return first


def _decode(path: Path, root: Path, size: int | None, channels: int) -> np.ndarray:
    """Decode a file to uint8 [height, width, channels]."""
    with _opened(path, root) as image:
        if image.mode.startswith("I"):
            image = _to_8_bits(image, _name(path, root))
        if size is not None:
            return middle_crop(image, size, channels)
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise UserError(f"{name} has pixels of 32 bits; must have 8 or 16 bits")
    return Image.fromarray((levels >> 8).astype(np.uint8))


@contextmanager
def _opened(path: Path, root: Path) -> Generator[Image.Image]:
    """Open an image; whatever Pillow raises meanwhile, of many kinds, becomes a UserError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).replace(repr(str(path)), "").split())
        raise UserError(
            f"{_name(path, root)} cannot be decoded ({type(error).__name__}: {reason}); remove it, or get it again"
        ) from None


def _name(path: Path, root: Path) -> str:
    return format_value(str(path.relative_to(root)))


def _count_notes(headers: Sequence[_Header], channels: int) -> tuple[str, ...]:
    counts = Counter(note for header in headers for note in header.notes)
    if channels == 3:
        counts[_GREY_TO_RGB] = sum(header.grey for header in headers)
    return tuple(f"{note} in {count:,} of {len(headers):,} images" for note, count in counts.items() if count)


def _in_threads(function: Callable[[Path], T], files: Sequence[Path], done: str) -> Iterator[T]:
    """Yield a function's value for each file, in their order, with progress; `done` says what was done to them."""
    pieces = [files[start : start + _PIECE] for start in range(0, len(files), _PIECE)]
    with (
        _Progress(done, len(files)) as progress,
        ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as threads,
    ):
        for values in threads.map(lambda piece: [function(path) for path in piece], pieces):
            yield from values
            progress.advance(len(values))


class _Progress(ProgressBar):
    """Shows how many images are done: a bar on a terminal, elsewhere a line at times; nothing for a few images."""

    def __init__(self, done: str, total: int):
        self._done, self._total, self._count, self._last = done, total, 0, time.perf_counter()
        if shows_bars() and total > _MANY:
            from rich.progress import Progress

            self._bar = Progress()
            self._bar.add_task(f"images {done}", total=total)

    def advance(self, count: int) -> None:
        """Count images that are done."""
        self._count += count
        if self._bar:
            self._bar.advance(self._bar.task_ids[0], count)
        elif time.perf_counter() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.perf_counter()
            print(f"images    {self._count:,} of {self._total:,} {self._done}", flush=True)
