"""A data set in MNIST's IDX files, gzipped or not: four files in one directory, with the names that MNIST gave them.

An IDX file is a header and an array: two zero bytes, a byte for the dtype, a byte for the number of dimensions, each
dimension as a big-endian uint32, and the values, big-endian too, the last dimension changing fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from loft_jax.data.dataset import Dataset
from loft_jax.data.memory import directory_name, image_data
from loft_jax.errors import UserError, did_you_mean, format_value

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
_SUFFIXES = {"images": ("idx3-ubyte", "idx4-ubyte"), "labels": ("idx1-ubyte",)}
# Bytes decompressed at once.
_PIECE = 2**24


def load_idx(data_dir: str) -> Dataset:
    """Load the data set in a directory of IDX files. Raises UserError, naming the file, if it holds none."""
    directory = Path(data_dir).expanduser()
    try:
        if not directory.is_dir():
            problem = "is a file; give the directory that holds it" if directory.exists() else "no such directory"
            raise UserError(problem)
        files = {(split, part): _find(directory, split, part) for split in _PREFIXES for part in _SUFFIXES}
        arrays = {key: _read(path) for key, path in files.items()}
        return image_data(
            arrays["train", "images"],
            arrays["train", "labels"],
            arrays["test", "images"],
            arrays["test", "labels"],
            name=directory_name(directory),
        )
    except UserError as error:
        raise UserError(f"data.data_dir={format_value(data_dir)}: {error}") from None
    except OSError as error:
        raise UserError(f"data.data_dir={format_value(data_dir)}: cannot be read ({error.strerror})") from None


def _find(directory: Path, split: str, part: str) -> Path:
    """Return the file of the images or labels of "train" or "test", not gzipped if there are both."""
    stems = [
        f"{prefix}-{part}{mark}{suffix}" for prefix in _PREFIXES[split] for suffix in _SUFFIXES[part] for mark in "-."
    ]
    for name in (stem + ending for ending in ("", ".gz") for stem in stems):
        if (directory / name).is_file():
            return directory / name
    there = sorted(path.name for path in directory.iterdir())
    near = did_you_mean(stems[0], there) or f"; there is {', '.join(there[:10]) or 'nothing'}"
    raise UserError(f"holds no {stems[0]}, also not as .gz{near}")


def _read(path: Path) -> np.ndarray:
    """Read the array of a file. Raises UserError, naming the file, if it is damaged or none."""
    try:
        content = _read_bytes(path)
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path.name} cannot be read ({reason}); the file is damaged, get it again") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES or not 1 <= content[3] <= 4:
        raise UserError(f"{path.name} is no IDX file: it begins with {content[:4].hex(' ') or 'nothing'}")
    dtype, dimensions = np.dtype(_DTYPES[content[2]]), content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start]) if len(content) >= start else ()
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected or not shape:
        says = (
            f"its header, of {'x'.join(map(str, shape))} {dtype.name}, says {expected}" if shape else "no header fits"
        )
        raise UserError(f"{path.name} has {len(content)} bytes, and {says}; the file is damaged, get it again")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_bytes(path: Path) -> bytes:
    """Read a file, decompressed if it is gzipped, whatever its name."""
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path.read_bytes()
    with gzip.open(path) as file:
        return b"".join(iter(lambda: file.read(_PIECE), b""))
