"""How fast streamed images arrive, against what decoding and cropping alone take: python -m pytest -n 0 -s -m speed"""

import multiprocessing
import statistics
import time
from functools import partial

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.prepared import load, photographs, prepare

from loft_jax.config.config import Config
from loft_jax.data.streaming.decode import training_crop
from loft_jax.data.streaming.stream import default_readers
from loft_jax.devices.mesh import make_mesh
from loft_jax.loft.streamed import StreamedTraining

BATCH, STEPS, PAIRS = 64, 12, 7


def decode(files, count):
    """Decode and crop so many images, and nothing else; returns when they are done."""
    for number in range(count):
        training_crop(files[number % len(files)], 224, 3, np.random.default_rng(number))


@pytest.mark.speed
def test_images_arrive_at_four_fifths_of_the_speed_of_decoding_alone(tmp_path):
    files, labels = photographs(400, classes=1000, heights=(333, 500), widths=(400, 500))
    label = tfds.features.ClassLabel(num_classes=1000)
    prepare(tmp_path, {"train": (files, labels), "test": (files[:8], labels[:8])}, shape=(None, None, 3), label=label)
    settings = Config(
        data={"batch_size": BATCH}, loft={"workers": 1, "local_steps": 1}, train={"rounds": (PAIRS + 1) * (STEPS + 4)}
    )
    readers = default_readers()
    data = StreamedTraining(settings, load("tiny_images", tmp_path, readers=readers), make_mesh(settings))
    rounds = iter(range(settings.train.rounds))

    def arrive(count):
        for _ in range(count):
            with data.feed(next(rounds)) as feed:
                jax.block_until_ready(next(feed))

    with multiprocessing.get_context("spawn").Pool(readers) as pool:
        alone = partial(pool.map, partial(decode, files[:100]), [STEPS * BATCH // readers] * readers, 1)
        seconds = []
        for _ in range(PAIRS + 1):
            arrive(4)  # What was ready before the clock starts.
            times = [time.perf_counter()]
            for work in (partial(arrive, STEPS), alone):
                work()
                times.append(time.perf_counter())
            seconds.append(np.diff(times))
    data.close()
    arriving, alone = (STEPS * BATCH / np.array(seconds[1:])).T
    ratios = arriving / alone
    print(
        f"\n{readers} readers, {np.mean([len(f) for f in files]) / 1024:.0f} KiB a JPEG, {PAIRS} pairs: "
        f"{statistics.median(arriving):.0f} images/s arrive, {statistics.median(alone):.0f} decoded and cropped alone; "
        f"ratio {statistics.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})"
    )
    assert statistics.median(ratios) >= 0.8
