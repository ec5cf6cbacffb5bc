"""Images of mixed sizes become pixels of one size: the box that is meant, at full quality, from every kind of file."""

import io

import numpy as np
import pytest
from PIL import Image

from loft_jax.data.streaming import decode
from loft_jax.data.streaming.decode import evaluation_crop, random_box, training_crop


def encoded(pixels, kind="png", mode=None):
    image, file = Image.fromarray(pixels), io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return file.getvalue()


def ramp(width, height):
    """Red says how far right a pixel is, green how far down, both in [0, 255]."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.zeros_like(x)], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_training_image_is_its_random_box(seed, kind):
    width, height, size = 500, 375, 16
    pixels = training_crop(encoded(ramp(width, height), kind), size, 3, np.random.default_rng(seed)).astype(float)
    rng = np.random.default_rng(seed)
    left, top, right, bottom = random_box(width, height, rng)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    centres = (np.arange(size) + 0.5) / size
    across = 255 * (left + centres * (right - left) - 0.5) / (width - 1)
    down = 255 * (top + centres * (bottom - top) - 0.5) / (height - 1)
    # A JPEG at an eighth of its size is smooth over eight pixels, four levels here.
    tolerance = 2 if kind == "png" else 5
    assert np.abs(pixels[2:-2, 2:-2, 0] - across[None, 2:-2]).max() < tolerance
    assert np.abs(pixels[2:-2, 2:-2, 1] - down[2:-2, None]).max() < tolerance


def test_random_boxes_have_the_areas_and_shapes_that_are_asked_for_and_lie_in_the_image():
    rng = np.random.default_rng(0)
    left, top, right, bottom = np.array([random_box(500, 375, rng) for _ in range(2000)]).T
    assert min(left.min(), top.min()) >= 0
    assert right.max() <= 500
    assert bottom.max() <= 375
    area, ratio = (right - left) * (bottom - top) / (500 * 375), (right - left) / (bottom - top)
    assert 0.078 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.35


def test_where_no_draw_fits_the_box_is_the_largest_in_the_middle():
    rng = np.random.default_rng(0)
    assert random_box(1000, 10, rng) == (500 - 20 / 3, 0, 500 + 20 / 3, 10)
    assert random_box(10, 1000, rng) == (0, 500 - 20 / 3, 10, 500 + 20 / 3)


def test_a_test_image_is_resized_and_its_middle_cut_out():
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 15, 3), np.uint8)).resize((375, 300)))
    resized = Image.fromarray(pixels).resize((80, 64), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((12, 4, 68, 60)), float)
    cropped = evaluation_crop(encoded(pixels), 56, 3).astype(float)
    assert cropped.shape == (56, 56, 3)
    assert np.abs(cropped - expected).max() <= 2


def test_jpegs_are_decoded_small_but_never_smaller_than_the_crop(monkeypatch):
    decoded, resize = [], Image.Image.resize

    def spy(image, size, resample, box):
        decoded.append((image.size, box))
        return resize(image, size, resample, box=box)

    monkeypatch.setattr(Image.Image, "resize", spy)
    data = encoded(ramp(512, 512), "jpeg")
    for seed in range(50):
        training_crop(data, 100, 3, np.random.default_rng(seed))
    evaluation_crop(data, 100, 3)
    assert {size for size, _ in decoded} == {(512, 512), (256, 256), (128, 128)}
    assert all(min(box[2] - box[0], box[3] - box[1]) >= 100 for _, box in decoded)


@pytest.mark.parametrize(
    ("kind", "mode"), [("png", "L"), ("png", "P"), ("png", "RGBA"), ("png", "LA"), ("jpeg", "L"), ("jpeg", "CMYK")]
)
def test_every_kind_of_image_becomes_colour_and_grey(kind, mode):
    grey = np.repeat(np.linspace(0, 255, 40).round().astype(np.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    data = encoded(grey, kind, mode)
    colour, single = (decode.evaluation_crop(data, 20, channels).astype(int) for channels in (3, 1))
    assert (colour.shape, single.shape) == ((20, 20, 3), (20, 20, 1))
    assert np.abs(colour - single).max() <= 6
    assert np.abs(single[10, :, 0] - np.linspace(18, 237, 20)).max() < 12


def test_a_flip_happens_half_of_the_time():
    data = encoded(ramp(40, 40))
    crops = [training_crop(data, 8, 3, np.random.default_rng(seed)) for seed in range(100)]
    flipped = sum(int(crop[4, 0, 0]) > int(crop[4, -1, 0]) for crop in crops)
    assert 35 < flipped < 65
