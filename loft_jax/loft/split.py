"""The sub-CNN of a worker: the groups that a run splits, and the module that has one worker's share of them."""

from collections.abc import Sequence
from dataclasses import replace

from loft_jax.config import Config
from loft_jax.filters import FilterGroup
from loft_jax.models import Network


def split_groups(model: Network, config: Config) -> tuple[FilterGroup, ...]:
    """Return the model's filter groups, with `partitioned` set as `loft.partition` says.

    Raises:
      ValueError: `loft.workers` does not divide the width of a group that the run splits.
    """
    groups = model.filter_groups()
    if config.loft.partition != "paper":
        groups = tuple(replace(group, partitioned=config.loft.partition == "all") for group in groups)
    widths = sorted({group.width for group in groups if group.partitioned})
    workers = config.loft.workers
    if any(width % workers for width in widths):
        fitting = [s for s in range(1, max(widths) + 1) if not any(width % s for width in widths)]
        raise ValueError(
            f"loft.workers={workers}: must divide every partitioned width ({', '.join(map(str, widths))}); "
            f"try {min(fitting, key=lambda s: (abs(s - workers), s))}"
        )
    return groups


def sub_cnn(model: Network, groups: Sequence[FilterGroup], config: Config) -> Network:
    """Make the module of one worker: its share of every split group, and the residual branch scaled if asked for."""
    split, workers = [group for group in groups if group.partitioned], config.loft.workers
    model = model.with_widths({group.name: group.width // workers for group in split})
    if config.loft.rescale:
        model = model.with_branch_scales({group.name: float(workers) for group in split})
    return model
