"""What pretraining sends, in bytes, from a model's declaration alone: nothing is run or compiled.

"Floats" are float32, four bytes each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from loft_jax.collectives import sent_bytes
from loft_jax.config import Config
from loft_jax.exchange import largest_hand
from loft_jax.models.groups import FilterGroup, filter_axes, with_momentum
from loft_jax.models.resnet import ResNet
from loft_jax.state import exchanges

BYTES_OF_FLOAT = 4


@dataclass(frozen=True)
class ParameterSplit:
    """The parameters of a network by what a parameter server does with them (the paper's communication column).

    Attributes:
      partitioned: P, of the partitioned groups: one worker holds each.
      shared_kernels: F, kernels of the other groups: every worker sends and receives them.
      rest: R, all others (stem, shortcuts, head, other norms): counted once a worker and sync.
    """

    partitioned: int
    shared_kernels: int
    rest: int

    @classmethod
    def of(cls, model: ResNet, groups: Sequence[FilterGroup], image_shape: tuple[int, int, int]) -> "ParameterSplit":
        """The split of a model whose groups say what is partitioned, for images [height, width, channels]."""
        partitioned = {path for group in groups if group.partitioned for path in group.axes}
        declared = {path for group in groups for path in group.axes}
        sizes = {"partitioned": 0, "shared_kernels": 0, "rest": 0}
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
        for path, leaf in flatten_dict({"params": variables["params"]}, sep="/").items():
            if path in partitioned:
                sizes["partitioned"] += leaf.size
            elif path in declared and path.endswith("/kernel"):
                sizes["shared_kernels"] += leaf.size
            else:
                sizes["rest"] += leaf.size
        return cls(**sizes)

    def server_bytes(self, workers: int) -> int:
        """Bytes that the paper's server sends and receives in one sync: 4 (2 P + S (2 F + R))."""
        return BYTES_OF_FLOAT * (2 * self.partitioned + workers * (2 * self.shared_kernels + self.rest))


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


def boundary_floats(model: ResNet, image_shape: tuple[int, int, int], cuts: Sequence[str]) -> list[int]:
    """Floats of one image's activations where the network is cut: behind each of these blocks.

    Raises:
      ValueError: a cut is no block, or is the last one, behind which there is no stage.
    """
    names, image = model.block_names(), jnp.zeros((1, *image_shape))
    floats = []
    for cut in cuts:
        if cut not in names[:-1]:
            raise ValueError(f"cut {cut!r}: must be a block with another behind it: {', '.join(names[:-1])}")
        segment = model.with_segment(0, names.index(cut) + 1)
        activations, _ = jax.eval_shape(segment.init_with_output, jax.random.key(0), image)
        floats.append(math.prod(activations.shape))
    return floats


def gpipe_bytes(boundaries: Sequence[int], images: int, bytes_of_number: int = BYTES_OF_FLOAT) -> int:
    """Bytes between GPipe's stages for this many images: activations forward, their gradients back."""
    return 2 * bytes_of_number * sum(boundaries) * images


def _sizes(state: Mapping[str, Any]) -> dict[str, int]:
    """Path -> number of floats of every variable that workers train."""
    variables = {kind: state[kind] for kind in ("params", "batch_stats", "momentum") if kind in state}
    return {path: leaf.size for path, leaf in flatten_dict(variables, sep="/").items()}
