"""A program of a round, before it is compiled: how often it runs, and what it sends as the declaration says."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from loft_jax.loft.traffic import NO_TRAFFIC, Traffic


@dataclass(frozen=True)
class RoundProgram:
    """A program that devices run in a round.

    Attributes:
      lower: lowers the program; runs nothing.
      runs: in one round, on each device that runs it.
      traffic: what its collectives move in one run, as the model's declaration says.
      sent: bytes that its device sends to one other device in one run, beside collectives.
      stage: of the pipeline that it belongs to, counted from 0; None for a program of every device.
      ticks: its time with the ticks in which the pipeline fills and drains, over its own time.
      grows: whether it takes more memory for a larger batch.
      begin, steps: for a program that loops over steps: what lowers its part before the first step, and their number.
        Compilers count a loop's body once.
    """

    lower: Callable[[], jax.stages.Lowered]
    runs: int
    traffic: Traffic = NO_TRAFFIC
    sent: float = 0.0
    stage: int | None = None
    ticks: float = 1.0
    grows: bool = True
    begin: Callable[[], jax.stages.Lowered] | None = None
    steps: int = 1
