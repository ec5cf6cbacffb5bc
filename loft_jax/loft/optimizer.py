"""The update of a local step, and its learning rate over the local steps of the whole run."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from loft_jax.config import Config

_DECAY_AT = (0.5, 0.75)

# By the number of moments.
_OPTAX_NAMES = {1: ("trace",), 2: ("mu", "nu")}

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
            milestones = settings.milestone_steps or [_milestone(config.total_steps, share) for share in _DECAY_AT]
            boundaries = {milestone - warmup: settings.decay for milestone in milestones}
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


@dataclass(frozen=True)
class UpdateRule:
    """The update of a local step: SGD with momentum, Adam (arXiv 1412.6980) or AdamW (arXiv 1711.05101).

    Attributes:
      directions: optax's map from gradients to directions, without the learning rate.
      moments: names of the moments that the state has.
      reset_every: number of local steps after which the moments start at zero again; None if they are carried.
    """

    directions: optax.GradientTransformation
    moments: tuple[str, ...]
    reset_every: int | None

    def update_parameters(
        self, gradients: Any, state: Any, learning_rate: jax.typing.ArrayLike, step: Any
    ) -> dict[str, Any]:
        """Make one update.

        Args:
          gradients: a tree like the parameters.
          state: has `params`, and trees like them as `momentum`, `second_moment` and `kept` (None where there is none).
          learning_rate: of this step.
          step: number of the local step in the run, int32 scalar.

        Returns:
          {"params", and the moments}, of the next state.
        """
        names = dict(zip(self.moments, _OPTAX_NAMES[len(self.moments)], strict=True))
        before: dict[str, Any] = {optax_name: getattr(state, name) for name, optax_name in names.items()}
        if len(names) > 1:
            # Adam's number of updates so far, by which it corrects moments that began at zero.
            before["count"] = jnp.asarray(step if self.reset_every is None else step % self.reset_every, jnp.int32)
        start = optax.tree_utils.tree_set(self.directions.init(state.params), **before)
        direction, after = self.directions.update(gradients, start, state.params)
        params = jax.tree.map(lambda p, d: p - learning_rate * d, state.params, direction)
        if state.kept is not None:
            # Here and not at the gradients: that would be one more pass for every moment.
            params = jax.tree.map(lambda kept, p: jnp.where(kept, p, 0), state.kept, params)
        moments = {name: optax.tree_utils.tree_get(after, optax_name) for name, optax_name in names.items()}
        return {"params": params, **moments}


def make_update_rule(config: Config) -> UpdateRule:
    """Make the update of a config. Weight decay is for kernels; all but AdamW add it to the gradients."""
    settings = config.optimizer
    decay = optax.add_decayed_weights(settings.weight_decay, mask=_kernels)
    adam = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=settings.epsilon)
    match settings.name:
        case "sgd":
            directions = optax.chain(decay, optax.trace(decay=settings.momentum))
        case "adam":
            directions = optax.chain(decay, adam)
        case "adamw":
            directions = optax.chain(adam, decay)
    return UpdateRule(
        directions, settings.moments, config.loft.local_steps if config.loft.momentum == "reset" else None
    )


def _kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
