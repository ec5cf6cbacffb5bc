"""From the bytes of an image of any size to pixels of one size, on the host: one resampling, of a box of the image."""

import io
import math

import numpy as np
from PIL import Image

_SCALE, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
# The shorter side of a test image is resized to this over the crop's.
_MARGIN = 256 / 224

Box = tuple[float, float, float, float]


def training_crop(data: bytes, size: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of the image, of random shape, mirrored half of the time: uint8 [size, size, channels].

    The part has 0.08 to 1 of the image's area and sides of ratio 3/4 to 4/3; where ten draws find none that lies in
    the image, it is the largest in the middle that such a ratio allows.
    """
    image = Image.open(io.BytesIO(data))
    pixels = _resampled(image, random_box(*image.size, rng), size, channels)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def evaluation_crop(data: bytes, size: int, channels: int) -> np.ndarray:
    """The middle, where the shorter side is resized to 256/224 of `size`: uint8 [size, size, channels]."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    side = min(width, height) / _MARGIN
    return _resampled(image, _middle(width, height, side, side), size, channels)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """(left, top, right, bottom) of `training_crop` in an image of so many pixels."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_SCALE)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w, endpoint=True), rng.integers(height - h, endpoint=True)
            return float(left), float(top), float(left + w), float(top + h)
    return _middle(width, height, min(width, height * _RATIO[1]), min(height, width / _RATIO[0]))


def _middle(width: float, height: float, w: float, h: float) -> Box:
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def _resampled(image: Image.Image, box: Box, size: int, channels: int) -> np.ndarray:
    full = image.size
    # A JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size; of these the smallest at which the box still has as
    # many pixels as are asked for. Other formats ignore it.
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
