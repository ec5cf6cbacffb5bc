"""Arrays by name in an .npz file, a zip of them."""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# What a damaged archive, or a damaged array in it, makes NumPy raise.
DAMAGED = (ValueError, KeyError, EOFError, OSError, MemoryError, RuntimeError, OverflowError)
DAMAGED += (SyntaxError, struct.error, zipfile.BadZipFile, zlib.error)


def pack_arrays(arrays: Mapping[str, Any]) -> bytes:
    """Return the content of an .npz file of these arrays, compressed; no array may hold objects."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
