"""The file of a training's masks: which weights or filters exist, eight of them in a byte. Imports no JAX."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loft_jax.errors import UserError
from loft_jax.files import DAMAGED, pack_arrays, write_atomically
from loft_jax.lottery.selection import Masks

MASKS = "masks.npz"
_BITS, _SHAPE = "bits/", "shape/"


def write_masks(path: Path, masks: Masks) -> None:
    """Write masks, completely or not at all: "bits/NAME", uint8 of packed bits, and "shape/NAME"."""
    arrays = {f"{_BITS}{name}": np.packbits(mask) for name, mask in masks.items()}
    arrays |= {f"{_SHAPE}{name}": np.array(mask.shape, np.int64) for name, mask in masks.items()}
    write_atomically(path, pack_arrays(arrays))


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
    except DAMAGED as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {path.parent} to train it again") from None
