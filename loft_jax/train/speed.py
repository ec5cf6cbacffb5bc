"""The speed of training on one device: local steps without pauses, of two networks in turn."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from loft_jax.data import AnyDataset
from loft_jax.devices import DATA, WORKER
from loft_jax.loft import LocalStep, State
from loft_jax.models import Network, variable_shapes

_SECONDS_A_TURN = 0.3


class StepLoop:
    """Local steps of one network on black images, on the first device, one dispatch each.

    Attributes:
      batch_size: images of one step.
    """

    def __init__(self, step: LocalStep, model: Network, dataset: AnyDataset, batch_size: int, *, pruned: bool = False):
        """`pruned`: whether the state says which weights there are, as that of a lottery does."""
        device = jax.devices()[0]
        self.batch_size = batch_size
        shape = dataset.image_shape
        variables = variable_shapes(model, shape)
        # Zeros take as long as other numbers, and initialisers take long to compile.
        filled = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
        step = replace(step, model=model, data_shards=1)
        state = State.from_collections(filled).with_zero_moments(step.rule.moments)
        state = state.with_all_kept() if pruned else state
        self._state = jax.device_put(step.pack(state), device)
        images = np.zeros((batch_size, *shape), np.uint8), np.zeros(batch_size, np.int32)
        data = jax.device_put(images, device)
        self._arguments = (*data, jax.random.key(0), jnp.int32(0))
        alone = Mesh(np.array([[device]]), (WORKER, DATA), axis_types=(AxisType.Auto,) * 2)
        spec = PartitionSpec()
        program = jax.shard_map(step, mesh=alone, in_specs=spec, out_specs=(spec, spec))
        self._program = jax.jit(program, donate_argnums=0).lower(self._state, *self._arguments).compile()

    def __call__(self, steps: int) -> None:
        """Run this number of steps, and wait for them."""
        for _ in range(steps):
            self._state, _ = self._program(self._state, *self._arguments)
        jax.block_until_ready(self._state)


def images_per_second(first: StepLoop, second: StepLoop, pairs: int = 5) -> tuple[float, float]:
    """Measure the median images/s of two networks in turn; a measurement takes some tenths of a second."""
    second(1)
    start = time.perf_counter()
    second(1)
    steps = max(1, round(_SECONDS_A_TURN / (time.perf_counter() - start)))
    seconds = interleaved(lambda: first(steps), lambda: second(steps), pairs)
    one, other = (
        steps * loop.batch_size / statistics.median(s) for loop, s in zip((first, second), seconds, strict=True)
    )
    return one, other


def interleaved(a: Callable[[], object], b: Callable[[], object], pairs: int) -> tuple[list[float], list[float]]:
    """Time a and b, called in turn, after one call of each that is not counted. Returns the seconds of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs + 1):
        for run, times in zip((a, b), seconds, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return seconds[0][1:], seconds[1][1:]
