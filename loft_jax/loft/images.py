"""The images of every step: arrays on all devices, or batches streamed to the devices.

Three loops need images: local steps, the re-estimation of norm statistics, and the test. Each takes them as `Batches`,
and does not know which of the two they are. Arrays are arguments of a whole loop; streamed batches are arguments of
single steps. A loop over streamed batches is dispatched step by step on every backend, because as one program it would
need all images of a round at once.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
from jax.sharding import Mesh, PartitionSpec

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Dataset
from loft_jax.loft.resident import ResidentImages
from loft_jax.loft.streamed import StreamedImages

Batch = tuple[jax.Array, ...]


class Batches(Protocol):
    """The batches of a loop of steps.

    Attributes:
      arguments, argument_specs: the arguments of every step of the loop (arrays, or their shapes), and their sharding.
      feed_shapes, feed_specs: shapes of the further arguments that each step has of its own, and their sharding.
    """

    @property
    def arguments(self) -> tuple[Any, ...]: ...
    @property
    def argument_specs(self) -> tuple[PartitionSpec, ...]: ...
    @property
    def feed_shapes(self) -> tuple[Any, ...]: ...
    @property
    def feed_specs(self) -> tuple[PartitionSpec, ...]: ...

    def feed(self, round_number: Any = 0) -> AbstractContextManager[Iterator[Batch] | None]:
        """Open the arguments that each step has of its own, in the order of the steps; None where there are none."""
        ...

    def begin(self, *place: jax.Array) -> Any:
        """Inside shard_map: prepare what `pick` needs. `place`: worker and round, if the batches depend on them."""
        ...

    def pick(self, prepared: Any, step: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inside shard_map: pick the device's part of a step's batch.

        Args:
          prepared: what `begin` returned.
          step: number of the step in the loop, int32 scalar.
          arguments: `arguments` of the loop, then the arguments that the step has of its own.

        Returns:
          Images and labels, uint8 [part, height, width, channels] and int32 [part]; or features, [part, features].
        """
        ...


class Images(Protocol):
    """The images of a run, as batches for each loop that needs them.

    Attributes:
      training: batches of local steps; a label is int32 in [0, classes).
      norms: the training batches on which norm statistics are re-estimated, the same at every call; in a step of the
        loop each device has a batch of its own.
      test: every test image once, spread over the devices; padded with images of label -1.
      validation: the same with every image that is held out of the training images; there must be some.
    """

    @property
    def training(self) -> Batches: ...
    @property
    def norms(self) -> Batches: ...
    @property
    def test(self) -> Batches: ...
    @property
    def validation(self) -> Batches: ...

    def close(self) -> None:
        """Stop the readers, if there are any."""
        ...


def make_images(config: Config, dataset: AnyDataset, mesh: Mesh, *, shapes_only: bool = False) -> Images:
    """Make the images of a run: on the devices of the mesh, or streamed to them if the data set is streamed.

    Args:
      shapes_only: put nothing on a device; enough to lower programs.
    """
    if isinstance(dataset, Dataset):
        return ResidentImages(config, dataset, mesh, shapes_only=shapes_only)
    return StreamedImages(config, dataset, mesh)
