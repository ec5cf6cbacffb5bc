"""The file of a training's masks: which weights or filters exist, eight of them in a byte. Imports no JAX."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loft_jax.errors import UserError
from loft_jax.files import write_atomically
from loft_jax.lottery.selection import Masks

MASKS = "masks.npz"
_BITS, _SHAPE = "bits/", "shape/"
# A flipped byte in a zip file can cause any of these.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def write_masks(path: Path, masks: Masks) -> None:
    """Write masks, completely or not at all: "bits/NAME", uint8 of packed bits, and "shape/NAME"."""
    content = io.BytesIO()
    arrays = {f"{_BITS}{name}": np.packbits(mask) for name, mask in masks.items()}
    arrays |= {f"{_SHAPE}{name}": np.array(mask.shape, np.int64) for name, mask in masks.items()}
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomically(path, content.getvalue())


def read_masks(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Masks:
    """Read masks: name -> bool array.

    Args:
      shapes: name -> shape that each must have.

    Raises:
      UserError: the file is damaged, or holds masks of another network.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [name.removeprefix(_BITS) for name in file.files if name.startswith(_BITS)]
            found = {name: tuple(file[f"{_SHAPE}{name}"].tolist()) for name in names}
            if found != dict(shapes):
                raise UserError(f"{path}: holds masks of another network; delete {path.parent} to train it again")
            return {
                name: np.unpackbits(file[f"{_BITS}{name}"], count=int(np.prod(shape))).astype(bool).reshape(shape)
                for name, shape in found.items()
            }
    except _DAMAGED as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {path.parent} to train it again") from None
