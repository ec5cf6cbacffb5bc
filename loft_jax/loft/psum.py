"""`loft.sync: psum`: owned slices are summed to the full CNN, which every device holds between rounds."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.devices import PER_WORKER, REPLICATED, WORKER, vary
from loft_jax.filters import FilterGroup, draw_partition, with_moments
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.state import State
from loft_jax.loft.summed import Summed
from loft_jax.loft.sync import Masks
from loft_jax.loft.traffic import BYTES_OF_FLOAT, NO_TRAFFIC, Traffic, variable_sizes
from loft_jax.randomness import Purpose, key_for


class Psum:
    """Writes owned slices into zeros and sums them over the workers; averages shared variables.

    The state at rest is the full state, on every device. Every round draws a new partition.

    Attributes:
      state_spec, masks_spec: sharding of the state at rest, and of a partition's masks, over the mesh.
    """

    state_spec, masks_spec, holds_full = REPLICATED, PER_WORKER, True

    def __init__(self, config: Config, groups: Sequence[FilterGroup], mesh: Mesh):
        self._seed, self._workers, self._devices = config.seed, config.loft.workers, mesh.shape[WORKER]
        self._split = tuple(group for group in groups if group.partitioned)
        self._summed = Summed(with_moments(self._split), self._workers)
        self._draw = jax.jit(self._draw_masks, out_shardings=NamedSharding(mesh, PER_WORKER))

    def place(self, full: State) -> State:
        """Return the full state, on every device of the mesh: it is the state at rest."""
        return full

    def full(self, state: State) -> State:
        """Return the state at rest: it is the full state, on every device of the mesh."""
        return state

    def partition(self, state: State) -> Masks:
        """Draw the masks of the next round: group name -> bool [S, n]; row s is what worker s owns."""
        return self._draw(state.round)

    def compact(self, state: State, masks: Masks, turn: jax.Array) -> State:
        """Inside shard_map: take from the state at rest the compact state of the worker that has this turn."""
        full, kept = vary((state.collections, state.kept), WORKER)
        own = self._summed.take(full, masks, turn)
        return State.from_collections(own, kept=self._summed.take_kept(kept, masks, turn))

    def combine(self, state: State, masks: Masks, compacts: Sequence[State]) -> State:
        """Inside shard_map: make the next state at rest from the compact states of a device's workers."""
        total = self._summed.combine(state.collections, masks, [compact.collections for compact in compacts])
        return State.from_collections(total, round=state.round + 1, kept=state.kept)

    def traffic(self, full: State) -> Traffic:
        """Count the ring that sums everything, and how many workers hold an entry of two split groups (int32)."""
        if self._devices == 1:
            return NO_TRAFFIC
        numbers = sum(variable_sizes(full).values()) + self._summed.counted(full.collections)
        loss = BYTES_OF_FLOAT
        return Traffic({"all-reduce": BYTES_OF_FLOAT * numbers + loss}, self._devices)

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return no programs: every device holds the full state."""
        return {}

    def _draw_masks(self, round_number: jax.Array) -> Masks:
        return draw_partition(key_for(self._seed, Purpose.PARTITION, round_number), self._split, self._workers)
