"""The outer step: a round's change of the parameters as a gradient (DiLoCo, arXiv 2311.08105)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import jax

from loft_jax.config import Config


@dataclass(frozen=True)
class OuterStep:
    """SGD with Nesterov momentum, as PyTorch has it.

    Attributes:
      learning_rate, momentum: of the step.
    """

    learning_rate: float
    momentum: float

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        """Make the step of the shared parameters; None without an outer optimizer."""
        loft = config.loft
        return None if loft.outer == "none" else cls(loft.outer_learning_rate, loft.outer_momentum)

    @classmethod
    def of_filters(cls, config: Config) -> Self | None:
        """Make the step of split filters; None if they take none."""
        return cls.from_config(config) if config.loft.outer_filters else None

    def __call__(self, before: jax.Array, after: jax.Array, trace: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Make a step from `before` with the gradient `before - after`. Returns the parameters and the new trace."""
        gradient = before - after
        trace = self.momentum * trace + gradient
        return before - self.learning_rate * (gradient + self.momentum * trace), trace

    def step_all(
        self, before: Mapping[str, jax.Array], after: Mapping[str, jax.Array], traces: Mapping[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Make a step of every variable that has a trace. Returns the variables, path -> array, and all traces."""
        after, traces = dict(after), dict(traces)
        for path in sorted(before.keys() & traces.keys()):
            after[path], traces[path] = self(before[path], after[path], traces[path])
        return after, traces
