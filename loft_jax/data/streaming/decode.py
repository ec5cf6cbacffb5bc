"""Decode the bytes of an image of any size to pixels of one size, on the host: a box of the image is resampled once."""

import io
import math

import numpy as np
from PIL import Image

_SCALE, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
# The shorter side of a test image is resized to the side of the crop times this.
_MARGIN = 256 / 224

Box = tuple[float, float, float, float]


def training_crop(data: bytes, size: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a random part of random shape, mirrored with probability 1/2: uint8 [size, size, channels].

    The part has 0.08 to 1 of the image's area, and the ratio of its sides is 3/4 to 4/3. If none of ten random parts is
    inside the image, the largest part in the middle with such a ratio is taken.
    """
    image = Image.open(io.BytesIO(data))
    pixels = _resample(image, random_box(*image.size, rng), size, channels)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def evaluation_crop(data: bytes, size: int, channels: int) -> np.ndarray:
    """Cut the middle after resizing the shorter side to 256/224 of `size`: uint8 [size, size, channels]."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    side = min(width, height) / _MARGIN
    return _resample(image, _middle_box(width, height, side, side), size, channels)


def middle_crop(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Cut the largest square in the middle, and resample it, unless it has the size: uint8 [size, size, channels]."""
    width, height = image.size
    side = min(width, height)
    return _resample(image, _middle_box(width, height, side, side), size, channels)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draw the box (left, top, right, bottom) of `training_crop` in an image of `width` x `height` pixels."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_SCALE)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w, endpoint=True), rng.integers(height - h, endpoint=True)
            return float(left), float(top), float(left + w), float(top + h)
    return _middle_box(width, height, min(width, height * _RATIO[1]), min(height, width / _RATIO[0]))


def _middle_box(width: float, height: float, w: float, h: float) -> Box:
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def _resample(image: Image.Image, box: Box, size: int, channels: int) -> np.ndarray:
    full = image.size
    # A JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size; draft() takes the smallest of them at which the box
    # still has enough pixels. Other formats ignore it.
    sides = (box[2] - box[0], box[3] - box[1])
    across, down = (math.ceil(f * size / side) for f, side in zip(full, sides, strict=True))
    image.draft(None, (across, down))
    scale_x, scale_y = (now / before for now, before in zip(image.size, full, strict=True))
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    box = (box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return pixels.reshape(size, size, channels)
