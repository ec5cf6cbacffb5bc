"""The sub-CNN of a worker: the groups that a run splits, and the module that has one worker's share of them."""

from collections.abc import Sequence
from dataclasses import replace

from loft_jax.config import Config
from loft_jax.filters import FilterGroup
from loft_jax.models import Network

# Layers that a message names.
_SHOWN = 6


def split_groups(model: Network, config: Config) -> tuple[FilterGroup, ...]:
    """Return the model's filter groups, with `partitioned` set as `loft.partition` says.

    Under `paper`, a network that does not declare its groups is split wherever the workers divide a group's width.

    Raises:
      ValueError: `loft.workers` does not divide the width of a group that the run splits.
    """
    groups, workers = model.filter_groups(), config.loft.workers
    if config.loft.partition == "paper" and not model.declares_groups:
        groups = tuple(replace(group, partitioned=group.width % workers == 0) for group in groups)
        if workers > 1 and not any(group.partitioned for group in groups):
            raise ValueError(_explain_whole(model, groups, workers))
        return groups
    if config.loft.partition != "paper":
        groups = tuple(replace(group, partitioned=config.loft.partition == "all") for group in groups)
    widths = sorted({group.width for group in groups if group.partitioned})
    if any(width % workers for width in widths):
        fitting = [s for s in range(1, max(widths) + 1) if not any(width % s for width in widths)]
        raise ValueError(
            f"loft.workers={workers}: must divide every partitioned width ({', '.join(map(str, widths))}); "
            f"try {min(fitting, key=lambda s: (abs(s - workers), s))}"
        )
    return groups


def _explain_whole(model: Network, groups: Sequence[FilterGroup], workers: int) -> str:
    """Say why no group of a network can be split."""
    if groups:
        widths = ", ".join(f"{group.name} {group.width}" for group in groups[:_SHOWN])
        reason = f"{workers} workers divide the width of none of its filter groups ({widths})"
        fitting = [s for s in range(2, groups[0].width + 1) if groups[0].width % s == 0]
        reason += f"; try {min(fitting, key=lambda s: (abs(s - workers), s))}" if fitting else ""
    else:
        whole = list(model.left_whole().items())
        reason = "; ".join(f"{name}: {why}" for name, why in whole[:_SHOWN]) or "it has no convolution or dense layer"
        reason += f"; and {len(whole) - _SHOWN} more" if len(whole) > _SHOWN else ""
    return (
        f"loft.workers={workers}: nothing of the network can be split ({reason}); python -m loft_jax.groups shows all "
        "of it; use loft.partition=none for local SGD, or loft.workers=1 for plain SGD"
    )


def sub_cnn(model: Network, groups: Sequence[FilterGroup], config: Config) -> Network:
    """Make the module of one worker: its share of every split group, and the residual branch scaled if asked for."""
    split, workers = [group for group in groups if group.partitioned], config.loft.workers
    model = model.with_widths({group.name: group.width // workers for group in split})
    if config.loft.rescale:
        model = model.with_branch_scales({group.name: float(workers) for group in split})
    return model
