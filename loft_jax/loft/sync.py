"""Protocol of a sync: how owned slices come together after local steps, and what devices keep between rounds."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import PartitionSpec

from loft_jax.devices import WORKER
from loft_jax.loft.fragments import Fragment
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.state import State
from loft_jax.loft.traffic import Traffic

Masks = Mapping[str, jax.Array]


class Sync(Protocol):
    """A way to sync. There are two: `loft_jax.loft.psum` and `loft_jax.loft.exchange`.

    The state between rounds ("at rest") is the sync's own type, a pytree with "round" as an attribute.

    Attributes:
      state_spec, masks_spec: sharding of the state at rest, and of a partition's masks, over the mesh.
      holds_full: whether every device holds the full state at rest.
    """

    @property
    def state_spec(self) -> Any: ...
    @property
    def masks_spec(self) -> PartitionSpec: ...
    @property
    def holds_full(self) -> bool: ...

    def place(self, full: State) -> Any:
        """Convert the full state, on every device of the mesh, to the state at rest."""
        ...

    def full(self, state: Any) -> State:
        """Convert the state at rest to the full state, on every device of the mesh."""
        ...

    def partition(self, state: Any) -> Masks:
        """Return the masks of the next round: group name -> bool [S, n]; row s is what worker s owns."""
        ...

    def compact(self, state: Any, masks: Masks, turn: jax.Array) -> State:
        """Inside shard_map: take from the state at rest the compact state of the worker that has this turn."""
        ...

    def combine(self, state: Any, masks: Masks, compacts: Sequence[State], fragment: Fragment) -> Any:
        """Inside shard_map: make the next state at rest from the compact states of a device's workers.

        Only what belongs to `fragment` is brought together.
        """
        ...

    def traffic(self, full: State, fragment: Fragment) -> Traffic:
        """Count what the collectives of one sync move, from the full state or its shapes; nothing is compiled."""
        ...

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return the programs that `full` runs between rounds, once each, by name; {} without any."""
        ...


def own_rows(masks: Any, turns: int) -> Any:
    """Inside shard_map: return what this device's workers own, [T, n], of the masks of all, [S, n]: one or a tree."""
    first = jax.lax.axis_index(WORKER) * turns
    return jax.tree.map(lambda mask: jax.lax.dynamic_slice_in_dim(mask, first, turns), masks)
