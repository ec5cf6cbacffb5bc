"""One training of a lottery: which level, control and seed it is, and its directory. Imports no JAX."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loft_jax.config import Config
from loft_jax.lottery.settings import LotteryConfig
from loft_jax.storage import RunDirectory

TICKET = "ticket"
LABEL = "training"


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
      level: how often weights have been removed.
      control: one of `CONTROLS`, or "ticket" for what is pruned by magnitude; at level 0 that is the whole network.
      config: its settings, with its seed.
      directory: RUN/seedK/levelN/CONTROL.
    """

    level: int
    control: str
    config: Config
    directory: RunDirectory

    @property
    def name(self) -> str:
        """Human-readable name."""
        return f"seed {self.config.seed}, level {self.level}, {self.control}"


def trainings(run: Path, config: LotteryConfig, seeds: Sequence[int]) -> Iterator[Training]:
    """Yield all trainings in their order: seed by seed, level by level, the ticket before its controls."""
    for seed in seeds:
        settings = config.training(seed)
        for level in range(config.lottery.levels + 1):
            for control in (TICKET, *(config.lottery.control_names if level else ())):
                yield Training(level, control, settings, directory_of(run, seed, level, control))


def directory_of(run: Path, seed: int, level: int, control: str = TICKET) -> RunDirectory:
    """Return the directory of a training."""
    return RunDirectory(run / f"seed{seed}" / f"level{level}" / control, LABEL)
