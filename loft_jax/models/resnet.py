"""ResNets of basic blocks, post-activation (He et al., arXiv 1512.03385) and pre-activation (arXiv 1603.05027).

Each block's inner filters are one filter group: conv1's output channels, the norm between the convolutions and conv2's
input channels. A block's input and output width never changes, so any subset of a group's filters is a working network.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from loft_jax.filters import FilterGroup
from loft_jax.models.layers import conv, downsample
from loft_jax.models.norm import BatchNorm

Value = TypeVar("Value")

_NORM_EPSILON = 1e-5
_NORM_VARIABLES = ("params/{}/scale", "params/{}/bias", "batch_stats/{}/mean", "batch_stats/{}/var")


class ResNet(nn.Module):
    """A ResNet of basic blocks on NHWC images.

    Attributes:
      blocks: number of blocks of each stage; stage s has outer width `width * 2**(s - 1)`.
      num_classes: number of logits.
      width: channels of the first stage.
      preactivation: norm and ReLU before each convolution, one norm at the end, none after the stem or on shortcuts.
      stem: "cifar" (3x3) or "imagenet" (7x7 stride 2, then 3x3 max-pooling stride 2).
      widths: group name -> number of its inner filters, for groups that differ from the declared width.
      branch_scales: group name -> factor on the output of conv2, before what follows it (1 where absent).
      dtype: dtype of the computation; variables and logits are float32.
      norm_momentum: weight of the old value in the running norm statistics.
      norm_axis: mesh axis over which norm statistics of a batch are averaged, inside shard_map.
      segment: (first, last) block of a part of the network, counted from 0, the last exclusive; None for all of it.
    """

    blocks: tuple[int, ...]
    num_classes: int
    width: int
    preactivation: bool
    stem: str = "cifar"
    widths: Mapping[str, int] = FrozenDict()
    branch_scales: Mapping[str, float] = FrozenDict()
    dtype: jnp.dtype = jnp.float32
    norm_momentum: float = 0.9
    norm_axis: str | None = None
    segment: tuple[int, int] | None = None

    declares_groups: ClassVar[bool] = True

    def block_names(self) -> tuple[str, ...]:
        """Return "stage1/block1", ... in network order."""
        return tuple(f"stage{stage}/block{block}" for stage, block in self._positions())

    def with_segment(self, first: int, last: int) -> "ResNet":
        """Return the part of the network from block `first` up to, but not including, block `last`.

        Its variables have the names that they have in the full network. The stem belongs to the first block; the final
        norm, pooling and head belong to the last. A part in the middle maps activations to activations.

        Raises:
          ValueError: the part has no block, or blocks that the network does not have.
        """
        if not 0 <= first < last <= len(self.block_names()):
            raise ValueError(f"segment {first} to {last}: must hold some of the {len(self.block_names())} blocks")
        return self.clone(segment=(first, last))

    def filter_groups(self) -> tuple[FilterGroup, ...]:
        """Return one group per block, in network order; in stages 2.. all but the first block are partitioned."""
        inner_norm = "norm2" if self.preactivation else "norm1"
        groups = []
        for stage, block in self._positions():
            name, module = f"stage{stage}/block{block}", f"stage{stage}_block{block}"
            axes = {f"params/{module}/conv1/kernel": 3}
            axes |= {path.format(f"{module}/{inner_norm}"): 0 for path in _NORM_VARIABLES}
            axes |= {f"params/{module}/conv2/kernel": 2}
            width = self.widths.get(name, self._outer_width(stage))
            groups.append(FilterGroup(name, width, axes, partitioned=stage > 1 and block > 1))
        return tuple(groups)

    def left_whole(self) -> Mapping[str, str]:
        """Return {}: the groups are declared."""
        return {}

    def with_widths(self, widths: Mapping[str, int]) -> "ResNet":
        """Return the same architecture with these numbers of filters in the named groups. Raises ValueError."""
        return self.clone(widths=FrozenDict({**self.widths, **self._check_names(widths)}))

    def with_branch_scales(self, scales: Mapping[str, float]) -> "ResNet":
        """Return the same network with the residual branch of the named groups multiplied by these factors."""
        return self.clone(branch_scales=FrozenDict({**self.branch_scales, **self._check_names(scales)}))

    def with_norms(self, *, axis: str | None = None, momentum: float | None = None) -> "ResNet":
        """Return the same network with norms that average statistics over this mesh axis, and use this momentum."""
        return self.clone(norm_axis=axis, norm_momentum=self.norm_momentum if momentum is None else momentum)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map images, float [batch, height, width, channels], to logits, float32 [batch, num_classes].

        With `train=True` norms use the statistics of the batch, and `batch_stats` must be mutable.
        """
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            momentum=self.norm_momentum,
            epsilon=_NORM_EPSILON,
            dtype=self.dtype,
            axis_name=self.norm_axis,
        )
        positions = self._positions()
        first, last = self.segment or (0, len(positions))
        x = x.astype(self.dtype)
        if first == 0:
            x = self._stem(x, norm)
        for stage, block in positions[first:last]:
            x = _Block(
                filters=self.widths.get(f"stage{stage}/block{block}", self._outer_width(stage)),
                features=self._outer_width(stage),
                stride=2 if stage > 1 and block == 1 else 1,
                preactivation=self.preactivation,
                branch_scale=self.branch_scales.get(f"stage{stage}/block{block}", 1.0),
                dtype=self.dtype,
                name=f"stage{stage}_block{block}",
            )(x, norm)
        if last < len(positions):
            return x
        if self.preactivation:
            x = norm(name="norm", relu=True)(x)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)

    def _stem(self, x: jax.Array, norm: partial[BatchNorm]) -> jax.Array:
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = conv(self.width, size, stride, dtype=self.dtype, name="stem")(x)
        if not self.preactivation:
            x = norm(name="stem_norm", relu=True)(x)
        if self.stem == "imagenet":
            x = downsample(x)
        return x

    def _positions(self) -> list[tuple[int, int]]:
        """Return (stage, block) of every block, each counted from 1."""
        return [(stage, block) for stage, count in enumerate(self.blocks, 1) for block in range(1, count + 1)]

    def _outer_width(self, stage: int) -> int:
        return self.width * 2 ** (stage - 1)

    def _check_names(self, by_group: Mapping[str, Value]) -> Mapping[str, Value]:
        known = self.block_names()
        unknown = sorted(set(by_group) - set(known))
        if unknown:
            raise ValueError(f"no such filter group: {', '.join(unknown)}; known: {', '.join(known)}")
        return by_group


class _Block(nn.Module):
    filters: int
    features: int
    stride: int
    preactivation: bool
    branch_scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, norm: partial[BatchNorm]) -> jax.Array:
        reshapes = self.stride != 1 or x.shape[-1] != self.features
        conv1 = conv(self.filters, 3, self.stride, dtype=self.dtype, name="conv1")
        conv2 = conv(self.features, 3, dtype=self.dtype, name="conv2")
        if self.preactivation:
            y = norm(name="norm1", relu=True)(x)
            shortcut = self._shortcut(y) if reshapes else x
            y = conv2(norm(name="norm2", relu=True)(conv1(y)))
            return shortcut + self._scale_branch(y)
        y = conv2(norm(name="norm1", relu=True)(conv1(x)))
        y = norm(name="norm2")(self._scale_branch(y))
        if reshapes:
            x = norm(name="shortcut_norm")(self._shortcut(x))
        return nn.relu(x + y)

    def _shortcut(self, x: jax.Array) -> jax.Array:
        # Strided here, because a strided convolution's gradient is written, and added, in all of its input's size.
        return conv(self.features, 1, dtype=self.dtype, name="shortcut")(x[:, :: self.stride, :: self.stride])

    def _scale_branch(self, y: jax.Array) -> jax.Array:
        return y if self.branch_scale == 1.0 else y * jnp.asarray(self.branch_scale, y.dtype)
