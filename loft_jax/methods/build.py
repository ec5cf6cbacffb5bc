"""Makes the method that a config names, and checks it against model, devices and data."""

import jax
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Facts
from loft_jax.errors import UserError
from loft_jax.gpipe import GPipe, check_cuts
from loft_jax.loft import Images, Method, Round, split_groups
from loft_jax.models import Network, needs_images


def check_method(model: Network, config: Config) -> None:
    """Raise UserError if the model cannot be split over the workers, or not be cut into the stages of a pipeline.

    A pipeline runs in one process. If a run has several processes, call this after they have connected.
    """
    try:
        groups = split_groups(model, config)
        if config.gpipe.stages is not None:
            check_cuts(model, config)
    except ValueError as error:
        raise UserError(str(error)) from None
    split = sum(group.partitioned for group in groups)
    if 0 < split < config.loft.stagger:
        raise UserError(
            f"loft.stagger={config.loft.stagger}: there are only {split} split filter groups to take turns; try {split}"
        )
    if config.gpipe.stages is not None and jax.process_count() > 1:
        raise UserError(
            f"gpipe.stages={config.gpipe.stages}: GPipe runs in one process, but {jax.process_count()} were started; "
            "start one"
        )


def check_data(config: Config, data: AnyDataset | Facts, name: str) -> None:
    """Raise UserError if the data set does not fit: too few images, features, or streamed where the method is GPipe."""
    if config.data.split == "disjoint" and data.examples < config.loft.workers:
        raise UserError(
            f"loft.workers={config.loft.workers}: {data.examples} images are too few for data.split=disjoint"
        )
    if len(data.image_shape) == 1 and not needs_images(config):
        raise UserError(
            f"model.name={config.model.name}: takes images, and {name} has {data.image_shape[0]} features of each "
            "example; use model.name=mlp or lenet300, or a network of your own"
        )
    if config.gpipe.stages is not None and data.streamed:
        raise UserError(
            f"gpipe.stages={config.gpipe.stages}: GPipe trains on data that are kept on the device, but {name} is "
            f"streamed (data.loading={config.data.loading}); train it by LoFT or plain SGD"
        )


def make_method(
    config: Config, model: Network, dataset: AnyDataset, mesh: Mesh, images: Images, *, fused: bool | None = None
) -> Method:
    """Make the method that a config names: GPipe's pipeline if it has stages, otherwise LoFT's round.

    LoFT's round is local SGD if nothing is split, and plain SGD if there is one worker.

    Args:
      fused: whether a loop of steps is one program; None to choose by the backend.
    """
    if config.gpipe.stages is None:
        return Round(config, model, dataset, mesh, images, fused=fused)
    return GPipe(config, model, dataset, mesh, images)
