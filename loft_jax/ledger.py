"""What pretraining sends, in bytes, from a model's declaration alone: nothing is run or compiled.

"Floats" are float32, four bytes each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from loft_jax.models.groups import FilterGroup
from loft_jax.models.resnet import ResNet

BYTES_OF_FLOAT = 4


@dataclass(frozen=True)
class ParameterSplit:
    """The parameters of a network by what a parameter server does with them (paper.md, communication column).

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


def gpipe_bytes(boundaries: Sequence[int], images: int) -> int:
    """Bytes between GPipe's stages for this many images: activations forward, their gradients back."""
    return 2 * BYTES_OF_FLOAT * sum(boundaries) * images
