"""What a lottery removes: single weights of kernels, which become zeros; or filters, so that the network is smaller."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import jax
import numpy as np

from loft_jax.config import Config
from loft_jax.data import AnyDataset
from loft_jax.filters import filter_scores, flatten_paths, prune, unflatten_paths
from loft_jax.loft import State
from loft_jax.lottery.selection import Masks, Scores
from loft_jax.models import Network, variable_shapes
from loft_jax.train import Experiment

Tree = dict[str, Any]
_KERNEL = "/kernel"


class Target(Protocol):
    """What is removed.

    Attributes:
      what: the name of one of them.
      where: the name of what has a mask.
      shapes: name -> shape of its mask.
    """

    what: str
    where: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def widths(self, masks: Masks) -> dict[str, int]:
        """Return the widths of the filter groups that masks make narrower; {} if they do not change shapes."""
        ...

    def build(self, config: Config, dataset: AnyDataset, widths: Mapping[str, int]) -> Experiment:
        """Build the experiment that trains a network of these widths."""
        ...

    def scores(self, params: Tree, masks: Masks) -> Scores:
        """Return the magnitudes of what masks keep, in arrays of their shapes.

        Args:
          params: parameters at the end of a training with these masks.
        """
        ...

    def start(self, experiment: Experiment, params: Tree, masks: Masks) -> State:
        """Make the state before the first step, from the whole network's parameters, of which the masks remain."""
        ...

    def kernel_weights(self, masks: Masks) -> int:
        """Count the weights of all kernels of the network that masks leave."""
        ...


class Weights:
    """Single weights of kernels; a layer is named by the path of its module, "stage2_block2/conv1"."""

    what, where = "weight", "layer"

    def __init__(self, model: Network, image_shape: tuple[int, ...]):
        self._params = flatten_paths(variable_shapes(model, image_shape)["params"])

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        kernels = {path: leaf for path, leaf in self._params.items() if path.endswith(_KERNEL)}
        return {path.removesuffix(_KERNEL): tuple(leaf.shape) for path, leaf in kernels.items()}

    def widths(self, masks: Masks) -> dict[str, int]:
        return {}

    def build(self, config: Config, dataset: AnyDataset, widths: Mapping[str, int]) -> Experiment:
        return Experiment.build(config, dataset=dataset, pruned=True)

    def scores(self, params: Tree, masks: Masks) -> Scores:
        flat = flatten_paths(params)
        return {name: np.abs(flat[name + _KERNEL]) for name in masks}

    def start(self, experiment: Experiment, params: Tree, masks: Masks) -> State:
        flat = flatten_paths(params)
        kept = {path: np.ones(leaf.shape, bool) for path, leaf in self._params.items()}
        kept |= {name + _KERNEL: mask for name, mask in masks.items()}
        # A sum with zero would turn -0.0 into 0.0, a product would leave it.
        params = unflatten_paths({path: np.where(kept[path], leaf, np.float32(0)) for path, leaf in flat.items()})
        return replace(experiment.state_from(params), kept=unflatten_paths(kept))

    def kernel_weights(self, masks: Masks) -> int:
        return sum(int(mask.sum()) for mask in masks.values())


class Filters:
    """Filters of the filter groups, by their norm; the network gets really smaller."""

    what, where = "filter", "filter group"

    def __init__(self, model: Network, image_shape: tuple[int, ...], *, relative: bool):
        """`relative`: whether scores are divided by the mean of their group, so that groups can be compared."""
        self._model, self._image_shape, self._relative = model, image_shape, relative
        self._groups = model.filter_groups()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {group.name: (group.width,) for group in self._groups}

    def widths(self, masks: Masks) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in masks.items()}

    def build(self, config: Config, dataset: AnyDataset, widths: Mapping[str, int]) -> Experiment:
        return Experiment.build(config, dataset=dataset, widths=widths)

    def scores(self, params: Tree, masks: Masks) -> Scores:
        groups = self._model.with_widths(self.widths(masks)).filter_groups()
        found = jax.device_get(filter_scores({"params": params}, groups))
        scores = {name: np.zeros(mask.shape) for name, mask in masks.items()}
        for name, values in found.items():
            # The scores of a group whose filters are all zero stay zero.
            scores[name][masks[name]] = values / (values.mean() or 1) if self._relative else values
        return scores

    def start(self, experiment: Experiment, params: Tree, masks: Masks) -> State:
        kept = {name: np.flatnonzero(mask) for name, mask in masks.items()}
        return experiment.state_from(prune({"params": params}, self._groups, kept)["params"])

    def kernel_weights(self, masks: Masks) -> int:
        params = variable_shapes(self._model.with_widths(self.widths(masks)), self._image_shape)["params"]
        return sum(math.prod(leaf.shape) for path, leaf in flatten_paths(params).items() if path.endswith(_KERNEL))


def whole(target: Target) -> Masks:
    """Return the masks of the whole network."""
    return {name: np.ones(shape, bool) for name, shape in target.shapes.items()}
