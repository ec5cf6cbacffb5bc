"""Which part of the network a sync brings together: fragments take turns, and shared variables may have rarer ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import jax

from loft_jax.config import Config
from loft_jax.randomness import Purpose, key_for


@dataclass(frozen=True)
class Fragment:
    """What one sync brings together.

    Attributes:
      number, count: which of so many fragments it is, from 0 on.
      averages: whether its shared variables are averaged.
    """

    number: int = 0
    count: int = 1
    averages: bool = True

    def part(self, length: int) -> slice:
        """Return its part of so many rows of a shared variable: nearly equal parts, which together are all."""
        return slice(length * self.number // self.count, length * (self.number + 1) // self.count)

    def moved(self, sizes: Mapping[str, int]) -> list[str]:
        """Name the groups whose filters it sends, of all groups and their numbers: about equal sums."""
        sums, moved = [0] * self.count, []
        for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
            least = sums.index(min(sums))
            sums[least] += sizes[name]
            moved += [name] if least == self.number else []
        return sorted(moved)

    def __str__(self) -> str:
        part = f" {self.number + 1} of {self.count}" if self.count > 1 else ""
        return f"sync{part}" + ", no average" * (not self.averages)


def all_fragments(config: Config) -> tuple[Fragment, ...]:
    """Return what the syncs of a run bring together: in a long run each equally often but for the rarer averages."""
    averages = (True, False) if config.loft.shared_every > 1 else (True,)
    count = config.loft.stagger
    return tuple(Fragment(number, count, average) for number in range(count) for average in averages)


def fragment_of_round(config: Config, round_number: int) -> Fragment:
    """Return what the sync of a round brings together; rounds count from 0. A function of the seed and the round.

    All fragments have a turn, in an order that is drawn anew, before one of them has the next.
    """
    count, every = config.loft.stagger, config.loft.shared_every
    cycle, turn = divmod(round_number, count)
    number = turn
    if count > 1:
        number = _order(config.seed, cycle, count)[turn]
    return Fragment(number, count, averages=(cycle + 1) % every == 0)


def share_of_rounds(config: Config, fragment: Fragment) -> float:
    """Return the share of a long run's rounds whose sync is this fragment's."""
    rare = 1 / config.loft.shared_every
    return (rare if fragment.averages else 1 - rare) / fragment.count


@cache
def _order(seed: int, cycle: int, count: int) -> tuple[int, ...]:
    """Return the order of the fragments in a cycle."""
    return tuple(jax.random.permutation(key_for(seed, Purpose.STAGGER, cycle), count).tolist())
