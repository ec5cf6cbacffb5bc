"""What collectives move, in bytes, from a model's declaration alone: nothing is run or compiled.

Each sync counts its own (`psum.py`, `exchange.py`); here is what they count with. Numbers are float32, four bytes each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from loft_jax.filters import flatten_paths
from loft_jax.loft.state import State

BYTES_OF_FLOAT = 4

# Bytes that a device sends for each byte it hands in, among g devices; all-reduce as a ring.
_SENT = {
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-gather": lambda g: g - 1,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
}


COLLECTIVE_KINDS = frozenset(_SENT)


@dataclass(frozen=True)
class Traffic:
    """What this program's collectives move, in bytes.

    Attributes:
      payloads: kind of collective -> bytes that each device hands in, as `cost.hlo.payloads` reads them.
      devices: number of devices that exchange with each other.
    """

    payloads: Mapping[str, int]
    devices: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends (all-reduce as a ring)."""
        return sum(sent_bytes(kind, payload, self.devices) for kind, payload in self.payloads.items())

    @property
    def wire(self) -> float:
        """Bytes that all these devices together send."""
        return self.devices * self.sent

    def times(self, number: int) -> "Traffic":
        """The traffic of so many of these."""
        return Traffic({kind: number * payload for kind, payload in self.payloads.items()}, self.devices)


NO_TRAFFIC = Traffic({}, 1)


def sent_bytes(kind: str, payload: float, devices: int) -> float:
    """Bytes that each of so many devices sends when it hands `payload` bytes to a collective; a ring for all-reduce."""
    return _SENT[kind](devices) * payload


def step_traffic(parameters: int, devices: int) -> Traffic:
    """Count the gradients and the loss of one data-parallel step. The batch's norm statistics are not counted."""
    return Traffic({"all-reduce": BYTES_OF_FLOAT * (parameters + 1)} if devices > 1 else {}, devices)


def norm_traffic(state: State, devices: int) -> Traffic:
    """Count the norm statistics that all devices gather, each having estimated a part."""
    floats = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    return Traffic({"all-reduce": BYTES_OF_FLOAT * floats} if devices > 1 else {}, devices)


def variable_sizes(state: State) -> dict[str, int]:
    """Path -> number of floats of every variable that workers train. `state` may hold arrays or their shapes."""
    return {path: leaf.size for path, leaf in flatten_paths(state.collections).items()}
