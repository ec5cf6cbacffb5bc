"""Protocols: what a network must offer to be trained by LoFT, and what only the pipeline needs in addition."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import jax

from loft_jax.filters import FilterGroup


class Network(Protocol):
    """A network whose filter groups are known: it declares them, or they were found by tracing.

    Variables are {"params", "batch_stats"}, nested dicts of float32 arrays; "batch_stats" may be empty.

    Attributes:
      dtype: dtype of the computation, to which the network converts its kernels.
      declares_groups: whether the groups are declared; then they also say which of them LoFT splits.
    """

    declares_groups: ClassVar[bool]

    @property
    def dtype(self) -> Any: ...

    def init(self, rngs: jax.Array, x: Any) -> Any:
        """Initialise the variables for images x, [batch, height, width, channels]."""
        ...

    def apply(self, variables: Any, x: Any, train: bool = False, *, mutable: Any = False, rngs: Any = None) -> Any:
        """Map images [batch, height, width, channels] to float32 logits [batch, classes].

        With `train=True` and `mutable=["batch_stats"]`, return (logits, {"batch_stats": updated running statistics}).
        `rngs`, {"dropout": key}, is for networks that draw numbers in training.
        """
        ...

    def filter_groups(self) -> tuple[FilterGroup, ...]:
        """Declare the filter groups, with their current widths."""
        ...

    def left_whole(self) -> Mapping[str, str]:
        """Return the layers whose filters belong to no group, and why: name -> reason. {} where groups are declared."""
        ...

    def with_widths(self, widths: Mapping[str, int]) -> Self:
        """Make the same architecture with these numbers of filters in the named groups. Raises ValueError."""
        ...

    def with_branch_scales(self, scales: Mapping[str, float]) -> Self:
        """Make the same network with the residual branch of the named groups multiplied by these factors."""
        ...

    def with_norms(self, *, axis: str | None = None, momentum: float | None = None) -> Self:
        """Make the same network with norms that work differently in training.

        Args:
          axis: mesh axis over whose devices a batch is spread; None where one device has the whole batch.
          momentum: weight of the old running statistics in an update; None keeps the weight that the network has.
        """
        ...


@runtime_checkable
class SegmentedNetwork(Network, Protocol):
    """A network that is a sequence of blocks, and can be cut between them into the stages of a pipeline."""

    def block_names(self) -> tuple[str, ...]:
        """Name the blocks in network order: "stage1/block1", ..."""
        ...

    def with_segment(self, first: int, last: int) -> Self:
        """Return the part from block `first` up to, but not including, block `last`; its variables keep their names."""
        ...
