"""Local SGD's update rule, and its learning rate over the local steps of the whole run."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from loft_jax.config import Config, Optimizer

_DECAY, _DECAY_AT = 0.1, (0.5, 0.75)

# Local step of the run -> learning rate. Optax's own type for this also allows complex numbers.
LearningRate = Callable[[Any], Any]


def learning_rate_schedule(config: Config) -> LearningRate:
    """Make the function from a local step of the run (int) to the learning rate; it never restarts at a round."""
    settings, warmup = config.optimizer, config.optimizer.warmup_steps
    # At least one, although a run that ends in its warm-up never gets to these steps.
    peak, steps = settings.learning_rate, max(1, config.total_steps - warmup)
    match settings.schedule:
        case "cosine":
            schedule = optax.cosine_decay_schedule(peak, steps)
        case "step":
            boundaries = {_milestone(config.total_steps, share) - warmup: _DECAY for share in _DECAY_AT}
            schedule = optax.piecewise_constant_schedule(peak, boundaries)
        case "constant":
            schedule = optax.constant_schedule(peak)
    if not warmup:
        return schedule
    # Start at peak/warmup, not at 0: a first step with learning rate 0 would change nothing.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, schedule], [warmup])


def _milestone(total: int, share: float) -> int:
    """Return the first local step after this share of the run; never earlier than the share itself in an odd total.

    In an even total a half is rounded to even, so that runs begun before go on as they were.
    """
    return math.ceil(total * share) if total % 2 else round(total * share)


def make_sgd(settings: Optimizer) -> optax.GradientTransformation:
    """Make SGD's map from gradients to the momentum trace of (gradient + weight decay on kernels).

    The caller multiplies by the learning rate.
    """
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay, mask=_kernels),
        optax.trace(decay=settings.momentum),
    )


def sgd_step(
    sgd: optax.GradientTransformation, gradients: Any, momentum: Any, params: Any, learning_rate: jax.typing.ArrayLike
) -> tuple[Any, Any]:
    """Make one update; returns (params, momentum). The momentum trace, a tree like params, is the only state."""
    state = optax.tree_utils.tree_set(sgd.init(params), trace=momentum)
    direction, state = sgd.update(gradients, state, params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
    return params, optax.tree_utils.tree_get(state, "trace")


def _kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
