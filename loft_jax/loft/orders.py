"""The images that each loop of steps reads: functions of the config and of the number of images."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.data import worker_order
from loft_jax.randomness import Purpose, key_for


def norm_order(config: Config, examples: int) -> jax.Array:
    """Return the training examples on which norm statistics are re-estimated: int32 [batches, batch]."""
    permutation = jax.random.permutation(key_for(config.seed, Purpose.NORM_STATISTICS), examples)
    return jnp.resize(permutation, (config.train.norm_batches, config.data.batch_size))


def training_order(config: Config, examples: int, worker: jax.Array, round_number: jax.Array) -> jax.Array:
    """Return the examples on which a worker trains in a round: int32 [local_steps, batch]."""
    per_round = config.loft.local_steps * config.data.batch_size
    order = worker_order(
        key_for(config.seed, Purpose.ORDER),
        worker,
        first=round_number * per_round,
        count=per_round,
        examples=examples,
        workers=config.loft.workers,
        split=config.data.split,
    )
    return order.reshape(config.loft.local_steps, config.data.batch_size)


def split_test(config: Config, examples: int, mesh: Mesh) -> tuple[int, int, int]:
    """Return the steps of a test, the images of a device in a step, and the padding images after the last one."""
    per_device = math.ceil(examples / mesh.size)
    batch = min(config.train.eval_batch_size, per_device)
    steps = math.ceil(per_device / batch)
    return steps, batch, steps * batch * mesh.size - examples
