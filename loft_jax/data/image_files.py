"""Image files (JPEG, PNG, ...) that lie one after another in an array of bytes, decoded to pixels.

A data set of JPEGs takes a tenth of the space of its pixels, which do not compress well. Decoding takes seconds, so the
pixels are written to the cache directory; later processes map them into memory.
"""

import hashlib
import io

import numpy as np
from PIL import Image

from loft_jax.errors import UserError
from loft_jax.files import cached_arrays


def decode_files(data: np.ndarray, ends: np.ndarray, count: int, name: str) -> np.ndarray:
    """Decode images of one size, or read them from the cache directory.

    Args:
      data: uint8 [bytes], the files one after another.
      ends: integers [count], where each of them ends.
      count: number of images that must be there.
      name: name of the array, for messages.

    Returns:
      uint8 [count, height, width, channels], with one channel if the first image is grey, otherwise three.

    Raises:
      UserError: the arrays hold no such files, or one cannot be decoded or has another size.
    """
    if data.dtype != np.uint8 or data.ndim != 1 or not data.size:
        raise UserError(f"{name} is {data.dtype} {data.shape}; must be uint8 [bytes], image files one after another")
    if ends.dtype.kind not in "iu" or ends.shape != (count,):
        raise UserError(f"the ends of {name} are {ends.dtype} {ends.shape}; must be {count} whole numbers, as labels")
    bounds = np.concatenate([[0], ends.astype(np.int64)])
    if (np.diff(bounds) <= 0).any() or bounds[-1] != len(data):
        raise UserError(f"the ends of {name} must ascend from file to file, up to its {len(data)} bytes")
    digest = hashlib.sha256(data.tobytes() + bounds.tobytes()).hexdigest()[:16]
    (images,) = cached_arrays(f"files-{digest}", ("images",), lambda: (_decode_all(data, bounds, name),))
    return images


def _decode_all(data: np.ndarray, bounds: np.ndarray, name: str) -> np.ndarray:
    first = _decode(data[: bounds[1]], None, 0, name)
    images = np.empty((len(bounds) - 1, *first.shape), np.uint8)
    for i in range(len(images)):
        images[i] = _decode(data[bounds[i] : bounds[i + 1]], first.shape, i, name)
    return images


def _decode(file: np.ndarray, shape: tuple[int, ...] | None, number: int, name: str) -> np.ndarray:
    """Decode one file to the channels of `shape`; without one, to those of the file."""
    try:
        image = Image.open(io.BytesIO(file.tobytes()))
        grey = image.mode in ("1", "L") if shape is None else shape[-1] == 1
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:  # Decoders raise many kinds of exceptions on damaged images.
        raise UserError(f"image {number} of {name} cannot be decoded ({type(error).__name__}: {error})") from None
    pixels = pixels.reshape(*pixels.shape[:2], 1 if grey else 3)
    if shape is not None and pixels.shape != shape:
        sizes = ["x".join(map(str, each)) for each in (pixels.shape, shape)]
        raise UserError(f"image {number} of {name} is {sizes[0]}, and the first is {sizes[1]}; resize them to one size")
    return pixels
