"""A program of a round before it is compiled: how often it runs, and what it sends according to the declaration."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from loft_jax.loft.traffic import NO_TRAFFIC, Traffic


@dataclass(frozen=True)
class RoundProgram:
    """A program that devices run in a round.

    Attributes:
      trace: traces the program; runs nothing.
      runs: runs in one round, on each device that runs it; in the mean where it does not run in every round.
      traffic: what its collectives move in one run, according to the model's declaration.
      sent: bytes that its device sends to one other device in one run, outside collectives.
      stage: pipeline stage that runs it, counted from 0; None for a program of every device.
      ticks: its time including the ticks in which the pipeline fills and drains, divided by its own time.
      due: says of a round, counted from 0, whether it runs in it; None: in every round.
      grows: whether it takes more memory for a larger batch.
      begin, steps: of a program that loops over steps: traces its part before the first step; number of the steps.
        Compilers count a loop's body only once.
    """

    trace: Callable[[], jax.stages.Traced]
    runs: float
    traffic: Traffic = NO_TRAFFIC
    sent: float = 0.0
    stage: int | None = None
    ticks: float = 1.0
    grows: bool = True
    due: Callable[[int], bool] | None = None
    begin: Callable[[], jax.stages.Traced] | None = None
    steps: int = 1

    def lower(self) -> jax.stages.Lowered:
        """Lower the program; nothing runs."""
        return self.trace().lower()
