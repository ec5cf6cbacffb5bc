"""What is checked of a method before it is built: model, devices and data."""

from flax import linen as nn

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Facts
from loft_jax.errors import UserError
from loft_jax.gpipe import check_cuts
from loft_jax.loft import check_exchangeable, exchanges, split_groups


def check_model(model: nn.Module, config: Config) -> None:
    """Raise UserError if the model cannot be split over the workers, or cut into the stages, that are asked for."""
    try:
        groups = split_groups(model, config)
        if exchanges(config, groups):
            check_exchangeable([group for group in groups if group.partitioned])
        if config.gpipe.stages is not None:
            check_cuts(model, config)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_data(config: Config, data: AnyDataset | Facts, name: str) -> None:
    """Raise UserError if a data set of this name has too few images for the workers, or is streamed under GPipe."""
    if config.data.split == "disjoint" and data.examples < config.loft.workers:
        raise UserError(
            f"loft.workers={config.loft.workers}: {data.examples} images are too few for data.split=disjoint"
        )
    if config.gpipe.stages is not None and data.streamed:
        raise UserError(
            f"gpipe.stages={config.gpipe.stages}: GPipe trains on data that are kept on the device, and {name} is "
            f"streamed (data.loading={config.data.loading}); train it by LoFT or plain SGD"
        )
