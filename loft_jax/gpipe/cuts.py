"""The blocks at which GPipe's stages end: those of the paper, those that a config names, or balanced by FLOPs."""

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import jax
import jax.numpy as jnp

from loft_jax.config import Config
from loft_jax.errors import did_you_mean
from loft_jax.models import Network, SegmentedNetwork, counted_flops
from loft_jax.paper import CUTS

Bounds = list[tuple[int, int]]


def stage_count(config: Config) -> int:
    """Return the number of stages of a config that asks for a pipeline."""
    assert config.gpipe.stages is not None, "a config without gpipe.stages does not ask for GPipe"
    return config.gpipe.stages


def as_segmented(model: Network, config: Config) -> SegmentedNetwork:
    """Return the model, typed as a sequence of blocks. Raises ValueError if it is not one."""
    if not isinstance(model, SegmentedNetwork):
        raise ValueError(
            f"gpipe.stages={stage_count(config)}: {config.model.name} is not a sequence of blocks, so it cannot be "
            "cut into stages; leave gpipe.stages out"
        )
    return model


def check_cuts(model: Network, config: Config) -> None:
    """Raise ValueError if a model cannot be cut as `gpipe` says; reads only the names of its blocks."""
    names, gpipe, stages = as_segmented(model, config).block_names(), config.gpipe, stage_count(config)
    if stages > len(names):
        raise ValueError(
            f"gpipe.stages={stages}: must be at most the {len(names)} blocks of {config.model.name}; try {len(names)}"
        )
    if gpipe.cuts == "paper" and stages > 1 and stages not in CUTS.get(config.model.name, {}):
        hint = "gpipe.stages=2 or 4" if config.model.name in CUTS else "balanced"
        raise ValueError(
            f"gpipe.cuts=paper: the paper cuts {', '.join(CUTS)}, each into 2 or 4 stages, but not "
            f"{config.model.name} into {stages}; try {hint}"
        )
    for name in gpipe.cut_blocks or ():
        if name not in names[:-1]:
            raise ValueError(
                f"gpipe.cuts={gpipe.cuts}: {name} must be a block of {config.model.name} and not its last one "
                f"({names[0]} to {names[-2]}){did_you_mean(name, names[:-1], f'try {names[0]}')}"
            )
    places = [names.index(name) for name in gpipe.cut_blocks or ()]
    if places != sorted(set(places)):
        ordered = ",".join(names[place] for place in sorted(set(places)))
        raise ValueError(f"gpipe.cuts={gpipe.cuts}: must be in network order, each block once; try {ordered}")


def stage_bounds(model: SegmentedNetwork, config: Config, image_shape: tuple[int, ...]) -> Bounds:
    """Return (first, last) block of each stage, counted from 0, `last` exclusive.

    Raises:
      ValueError: as `check_cuts`.
    """
    check_cuts(model, config)
    names, gpipe, stages = model.block_names(), config.gpipe, stage_count(config)
    if gpipe.cuts == "balanced":
        return find_balanced_cut(*block_costs(model, image_shape), stages)
    cuts = gpipe.cut_blocks or CUTS.get(config.model.name, {}).get(stages, ())
    return list(pairwise([0, *(names.index(name) + 1 for name in cuts), len(names)]))


def find_balanced_cut(costs: Sequence[float], boundaries: Sequence[int], stages: int) -> Bounds:
    """Find the cut whose most expensive stage is cheapest, and among equal ones the one that sends least.

    Args:
      costs: FLOPs of each block.
      boundaries: floats of the activations after each block except the last.
      stages: number of stages, at most the number of blocks.
    """

    def cost(cuts: tuple[int, ...]) -> tuple[float, int]:
        worst = max(sum(costs[a:b]) for a, b in pairwise((0, *cuts, len(costs))))
        return worst, sum(boundaries[cut - 1] for cut in cuts)

    cuts = min(combinations(range(1, len(costs)), stages - 1), key=cost)
    return list(pairwise((0, *cuts, len(costs))))


def block_costs(model: SegmentedNetwork, image_shape: tuple[int, ...]) -> tuple[list[float], list[int]]:
    """Count for one image each block's forward FLOPs (stem and head are in their neighbours), and floats after it."""
    forward, floats = [], []
    x, key = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.random.key(0)
    for block in range(len(model.block_names())):
        segment = model.with_segment(block, block + 1)
        variables = jax.eval_shape(segment.init, key, x)
        forward.append(counted_flops(jax.jit(segment.apply).lower(variables, x)))
        x = jax.eval_shape(segment.apply, variables, x)
        floats.append(x.size)
    return forward, floats[:-1]


def boundary_floats(model: SegmentedNetwork, image_shape: tuple[int, int, int], cuts: Sequence[str]) -> list[int]:
    """Count the floats of one image's activations where the network is cut: after each of these blocks.

    Raises:
      ValueError: a cut is not a block, or it is the last block, after which there is no stage.
    """
    names, image = model.block_names(), jnp.zeros((1, *image_shape))
    floats = []
    for cut in cuts:
        if cut not in names[:-1]:
            raise ValueError(f"cut {cut!r}: must be a block with another one after it: {', '.join(names[:-1])}")
        segment = model.with_segment(0, names.index(cut) + 1)
        variables = jax.eval_shape(segment.init, jax.random.key(0), image)
        activations = jax.eval_shape(segment.apply, variables, image)
        floats.append(math.prod(activations.shape))
    return floats
