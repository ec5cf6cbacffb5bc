"""What pretraining sends, in bytes, from a model's declaration alone: nothing is run or compiled.

"Floats" are float32, four bytes each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from loft_jax.config import Config
from loft_jax.filters import FilterGroup, filter_axes, with_momentum
from loft_jax.loft.exchange import largest_hand
from loft_jax.loft.state import exchanges

BYTES_OF_FLOAT = 4


@dataclass(frozen=True)
class Traffic:
    """What this program's collectives move, in bytes.

    Attributes:
      payloads: kind of collective -> bytes that each device hands in, as `collectives.payloads` reads them.
      devices: that exchange.
    """

    payloads: Mapping[str, int]
    devices: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends (all-reduce as a ring)."""
        return sum(sent_bytes(kind, payload, self.devices) for kind, payload in self.payloads.items())

    @property
    def wire(self) -> float:
        """Bytes that all devices together send."""
        return self.devices * self.sent


def sync_traffic(state: Mapping[str, Any], groups: Sequence[FilterGroup], config: Config, devices: int) -> Traffic:
    """Of one sync.

    Args:
      state: the full state, or its shapes.
      groups: `partitioned` where the run splits them.
      devices: over which the workers are spread.
    """
    if devices == 1:
        return Traffic({}, 1)
    sizes = _sizes(state)
    split = [group for group in with_momentum(groups) if group.partitioned]
    loss = BYTES_OF_FLOAT
    if not exchanges(config, groups):
        # Which pairs of filters of two split groups some worker holds is counted in int32.
        widths = {group.name: group.width for group in split}
        pairs = {tuple(pairs) for path, pairs in filter_axes(split).items() if path in sizes and len(pairs) > 1}
        counted = sum(math.prod(widths[name] for _, name in pair) for pair in pairs)
        return Traffic({"all-reduce": BYTES_OF_FLOAT * (sum(sizes.values()) + counted) + loss}, devices)
    workers = config.loft.workers
    moved = 0
    for group in split:
        filter_size = sum(sizes.pop(path) for path in group.axes if path in sizes) // group.width
        moved += workers * largest_hand(group.width // workers, workers) * filter_size
    payloads = {"all-reduce": BYTES_OF_FLOAT * sum(sizes.values()) + loss}
    return Traffic(payloads | {"all-to-all": BYTES_OF_FLOAT * workers // devices * moved}, devices)


def assembly_traffic(state: Mapping[str, Any], groups: Sequence[FilterGroup], config: Config, devices: int) -> Traffic:
    """Of assembling the full state from the workers' slices, before an evaluation or a checkpoint."""
    if devices == 1 or not exchanges(config, groups):
        return Traffic({}, devices)
    sizes = _sizes(state)
    moved = {path for group in with_momentum(groups) if group.partitioned for path in group.axes if path in sizes}
    return Traffic({"all-gather": BYTES_OF_FLOAT * sum(sizes[path] for path in moved) // devices}, devices)


def step_traffic(parameters: int, devices: int) -> Traffic:
    """Of the gradients and the loss in one data-parallel step. The batch's norm statistics are not counted."""
    return Traffic({"all-reduce": BYTES_OF_FLOAT * (parameters + 1)} if devices > 1 else {}, devices)


def norm_traffic(state: Mapping[str, Any], devices: int) -> Traffic:
    """Of gathering the norm statistics that all devices have estimated a part of."""
    floats = sum(leaf.size for leaf in jax.tree.leaves(state["batch_stats"]))
    return Traffic({"all-reduce": BYTES_OF_FLOAT * floats} if devices > 1 else {}, devices)


def _sizes(state: Mapping[str, Any]) -> dict[str, int]:
    """Path -> number of floats of every variable that workers train."""
    variables = {kind: state[kind] for kind in ("params", "batch_stats", "momentum") if kind in state}
    return {path: leaf.size for path, leaf in flatten_dict(variables, sep="/").items()}


# Bytes that a device sends for each byte it hands in, among g devices; all-reduce as a ring.
_SENT = {
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-gather": lambda g: g - 1,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
}


def sent_bytes(kind: str, payload: float, devices: int) -> float:
    """Bytes that each of so many devices sends when it hands `payload` bytes to a collective; a ring for all-reduce."""
    return _SENT[kind](devices) * payload
