"""The full state of a run: what a checkpoint holds, and what rounds start from.

{"params", "batch_stats", "round"}, and where the settings ask for them "momentum" (it is carried) and "owners" (the
partition of the next round, where it follows from the last one). `batch_stats` are the running statistics of training.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from loft_jax.config import Config
from loft_jax.filters import FilterGroup, draw_partition
from loft_jax.loft.sub_cnn import split_groups
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


def initial_state(model: nn.Module, config: Config, image_shape: tuple[int, ...]) -> Tree:
    """The state before the first round: a function of the seed alone."""
    key = key_for(config.seed, Purpose.INITIALISATION)
    variables = model.init(key, jnp.zeros((1, *image_shape)))
    return starting_state(variables, config, split_groups(model, config))


def starting_state(variables: Tree, config: Config, groups: Sequence[FilterGroup]) -> Tree:
    """The state of a run that starts from these variables: round 0, and momentum zero where it is carried."""
    state = {"params": variables["params"], "batch_stats": variables["batch_stats"], "round": jnp.int32(0)}
    if config.loft.momentum == "carry":
        state["momentum"] = jax.tree.map(jnp.zeros_like, state["params"])
    if exchanges(config, groups):
        key = key_for(config.seed, Purpose.PARTITION, 0)
        state["owners"] = draw_partition(key, groups, config.loft.workers)
    return state


def exchanges(config: Config, groups: Sequence[FilterGroup]) -> bool:
    """Whether filters go from worker to worker: `loft.sync: exchange`, and something is split."""
    return config.loft.sync == "exchange" and config.loft.workers > 1 and any(group.partitioned for group in groups)
