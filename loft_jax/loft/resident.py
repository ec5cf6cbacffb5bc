"""Images that are kept on the devices: see `loft_jax.loft.images`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.data import Dataset
from loft_jax.devices import DATA, PER_DEVICE, REPLICATED, distribute, replicate, shapes_with_sharding
from loft_jax.loft.orders import norm_order, split_test, training_order


class ResidentImages:
    """All training images on every device of a mesh, and on each device its part of the test images.

    Args:
      shapes_only: keep the shapes of the arrays instead.
    """

    def __init__(self, config: Config, dataset: Dataset, mesh: Mesh, *, shapes_only: bool = False):
        self._config, self._dataset, self._mesh, self._shapes_only = config, dataset, mesh, shapes_only
        arrays = (dataset.train_images, dataset.train_labels)
        everywhere = NamedSharding(mesh, REPLICATED)
        self._arrays = (
            shapes_with_sharding(everywhere, arrays) if shapes_only else tuple(replicate(a, mesh) for a in arrays)
        )

    @cached_property
    def training(self) -> "_OrderedBatches":
        """Batches for local steps: each worker has an order of its own, new in every epoch."""
        config, examples, shards = self._config, self._dataset.examples, self._mesh.shape[DATA]
        return _OrderedBatches(
            self._arrays, lambda worker, round_number: training_order(config, examples, worker, round_number), shards
        )

    @cached_property
    def norms(self) -> "_OrderedBatches":
        """Batches in the order of `norm_order`."""
        config, examples = self._config, self._dataset.examples
        return _OrderedBatches(self._arrays, lambda: norm_order(config, examples))

    @cached_property
    def test(self) -> "_SlicedBatches":
        """Batches of the test images: slices of each device's part."""
        return self._slice(self._dataset.test_images, self._dataset.test_labels)

    @cached_property
    def validation(self) -> "_SlicedBatches":
        """Batches of the images that are held out of the training images: slices of each device's part."""
        images, labels = self._dataset.validation_images, self._dataset.validation_labels
        assert images is not None
        assert labels is not None
        return self._slice(images, labels)

    def _slice(self, images: np.ndarray, labels: np.ndarray) -> "_SlicedBatches":
        sharding = NamedSharding(self._mesh, PER_DEVICE)
        _, batch, padding = split_test(self._config, len(labels), self._mesh)
        if self._shapes_only:
            count = len(labels) + padding
            shapes = ((count, *images.shape[1:]), images.dtype), ((count,), np.int32)
            return _SlicedBatches(tuple(jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes), batch)
        # With images that there are: norms may use the statistics of the batch.
        images = np.pad(images, ((0, padding), *((0, 0),) * (images.ndim - 1)), mode="wrap")
        labels = np.pad(labels, (0, padding), constant_values=-1)
        return _SlicedBatches((distribute(images, sharding), distribute(labels, sharding)), batch)

    def close(self) -> None:
        """Do nothing: there are no readers."""


@dataclass(frozen=True)
class _ResidentBatches:
    """Batches from arrays of images and labels, which are arguments of the whole loop."""

    arguments: tuple[Any, ...]

    feed_shapes = feed_specs = ()

    def feed(self, round_number: Any = 0) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class _OrderedBatches(_ResidentBatches):
    """Batches of examples in a given order; with several data shards each device picks its part.

    Attributes:
      order: makes the examples of a loop, int32 [steps, batch], from the arguments of `begin`.
    """

    order: Callable[..., jax.Array]
    data_shards: int = 1

    argument_specs = (REPLICATED, REPLICATED)

    def begin(self, *place: jax.Array) -> jax.Array:
        return self.order(*place)

    def pick(self, prepared: jax.Array, step: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels = arguments
        indices = prepared[step]
        if self.data_shards > 1:
            part = len(indices) // self.data_shards
            indices = jax.lax.dynamic_slice_in_dim(indices, jax.lax.axis_index(DATA) * part, part)
        return images[indices], labels[indices]


@dataclass(frozen=True)
class _SlicedBatches(_ResidentBatches):
    """Batches that follow each other in a device's part of the arrays."""

    batch: int

    argument_specs = (PER_DEVICE, PER_DEVICE)

    def begin(self, *place: jax.Array) -> dict[str, Any]:
        return {}

    def pick(self, prepared: dict[str, Any], step: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels = (jax.lax.dynamic_slice_in_dim(a, step * self.batch, self.batch) for a in arguments)
        return images, labels
