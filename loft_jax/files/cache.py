"""What is kept between runs, in the cache directory: whole, and looked at again whenever it is read."""

import logging
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from loft_jax.files.whole import ASIDE, clear_leftovers, replacing

# The end of a file: what it is, the bytes before it, and the CRC-32 of the file's name and of these bytes.
_END = struct.Struct("<8sQI")
_MARK = b"loft_jax"


def cache_directory() -> Path:
    """Return the cache directory: $LOFT_JAX_CACHE, or ~/.cache/loft_jax; without a home, among temporary files."""
    path = os.path.expanduser(os.environ.get("LOFT_JAX_CACHE") or "~/.cache/loft_jax")
    # A user of a container may have no home.
    return Path(tempfile.gettempdir(), "loft_jax") if path.startswith("~") else Path(path)


def cached_arrays(name: str, parts: Sequence[str], make: Callable[[], Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
    """Return the arrays that the cache has under a name; make them, and keep them, if they are not there or damaged.

    Args:
      name: text that changes when the arrays would.
      parts: what each array is called.
      make: is called for the arrays; its errors are not caught.
    """
    paths = [cache_directory() / "decoded" / f"{name}-{part}.npy" for part in parts]
    kept = [array for path in paths if (array := _read(path)) is not None]
    if len(kept) == len(paths):
        return kept
    made = make()
    for path, array in zip(paths, made, strict=True):
        _keep(path, array)
    return made


def _read(path: Path) -> np.ndarray | None:
    """Read an array of the cache; None, with a warning unless it is not there, if it is not what was written."""
    try:
        size = path.stat().st_size - _END.size
        content = np.memmap(path, np.uint8, "r")
        if size < 0 or _END.unpack(content[size:].tobytes()) != (_MARK, size, _checksum(path, content[:size])):
            raise ValueError("its checksum does not match")
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _warn(f"{path} is damaged, and made again: {error}")
        return None


def _keep(path: Path, array: np.ndarray) -> None:
    """Write an array to the cache, completely or not at all; if that fails, warn and continue."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent, f".*{ASIDE}")
        with replacing(path) as file:
            np.save(file, array)
            file.flush()
            content = np.memmap(file, np.uint8, "r")
            file.seek(0, os.SEEK_END)
            file.write(_END.pack(_MARK, len(content), _checksum(path, content)))
    except OSError as error:
        _warn(f"{path.name} is not cached: {error}")


def _checksum(path: Path, content: np.ndarray) -> int:
    """Compute the checksum of a file's bytes, and of its name: another file's bytes are as wrong as damaged ones."""
    return zlib.crc32(content.data, zlib.crc32(path.name.encode()))


def _warn(message: str) -> None:
    logging.getLogger(__name__).warning(message)
