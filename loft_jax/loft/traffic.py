"""The bytes that collectives move, from a model's declaration alone: nothing is run or compiled.

Each sync counts its own collectives (`psum.py`, `exchange.py`) with the functions here. A number is a float32 of four
bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from loft_jax.filters import flatten_paths
from loft_jax.loft.state import State
from loft_jax.loft.wire import BYTES_OF_FLOAT

# Bytes that a device sends for each byte that it contributes, among g devices; all-reduce as a ring.
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
    """The bytes that a program's collectives move.

    Attributes:
      payloads: kind of collective -> bytes that each device contributes, as `cost.hlo.payloads` reads them.
      devices: number of devices that exchange with each other.
    """

    payloads: Mapping[str, float]
    devices: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends (all-reduce as a ring)."""
        return sum(sent_bytes(kind, payload, self.devices) for kind, payload in self.payloads.items())

    @property
    def wire(self) -> float:
        """Bytes that these devices send together."""
        return self.devices * self.sent

    def times(self, number: int) -> "Traffic":
        """Return the traffic of this number of repetitions."""
        return Traffic({kind: number * payload for kind, payload in self.payloads.items()}, self.devices)


NO_TRAFFIC = Traffic({}, 1)


def sent_bytes(kind: str, payload: float, devices: int) -> float:
    """Count the bytes that a device sends when each of the devices contributes `payload`; all-reduce is a ring."""
    return _SENT[kind](devices) * payload


def step_traffic(parameters: int, devices: int) -> Traffic:
    """Count the gradients and the loss of one data-parallel step. The norm statistics of the batch are left out."""
    return Traffic({"all-reduce": BYTES_OF_FLOAT * (parameters + 1)} if devices > 1 else {}, devices)


def norm_traffic(state: State, devices: int) -> Traffic:
    """Count the norm statistics that devices sum, after each has estimated a part."""
    floats = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    return Traffic({"all-reduce": BYTES_OF_FLOAT * floats} if devices > 1 else {}, devices)


def variable_sizes(state: State) -> dict[str, int]:
    """Return path -> number of floats of every variable that workers train. `state` has arrays or their shapes."""
    return {path: leaf.size for path, leaf in flatten_paths(state.collections).items()}
