"""A run that goes from the CPU to an accelerator and back; there, deterministic mode gives the same bits twice."""

import shutil

import numpy as np
from helpers.elsewhere import continue_on, finish
from helpers.runs import assert_same_state

from loft_jax.storage import RunDirectory, read_state

# Losses of a round, at most; two devices round differently, and the four local steps of two rounds make more of it.
ROUNDING = {"cpu": 0, "gpu": 0.02}


def test_a_run_goes_from_the_cpu_to_the_device_and_back_and_twice_to_the_same_bits(platform, tmp_path):
    undisturbed, first, second = (tmp_path / name for name in ("undisturbed", "first", "second"))
    finish(continue_on("cpu", undisturbed, 6))
    for copy in (first, second):
        shutil.copytree(undisturbed, copy)
        for later in (4, 6):
            shutil.rmtree(copy / "checkpoints" / str(later))
    # On an accelerator each of the two compiles for itself, and chooses its kernels for itself.
    caches = [None if platform == "cpu" else tmp_path / f"cache of {run.name}" for run in (first, second)]
    finish(*(continue_on(platform, run, 2, cache) for run, cache in zip((first, second), caches, strict=True)))
    assert_same_state(*(read_state(run / "checkpoints", 4) for run in (first, second)))
    finish(continue_on("cpu", first, 2))
    losses, expected = ([row["train/loss"] for row in RunDirectory(run).rows()[1:]] for run in (first, undisturbed))
    assert len(expected) == 6
    np.testing.assert_allclose(losses, expected, rtol=ROUNDING[platform])
