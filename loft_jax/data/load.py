"""Image-classification data sets by name: arrays in memory, or streamed from files."""

from loft_jax.config import Config
from loft_jax.data.streaming.dataset import AnyDataset


def load_dataset(config: Config) -> AnyDataset:
    """The data set of a config: `digits`, which ships with scikit-learn, or a prepared TFDS one.

    Raises:
      UserError: the data set is unknown, not prepared, or not of the kind that `data.loading` asks for.
    """
    if config.data.name == "digits":
        from loft_jax.data.digits import load_digits

        return load_digits(config.seed)
    from loft_jax.data.tfds import load_tfds

    return load_tfds(config.data)
