"""Image-classification data sets as arrays in memory, by name."""

from loft_jax.config import Config
from loft_jax.data.dataset import Dataset
from loft_jax.errors import UserError


def load_dataset(config: Config) -> Dataset:
    """The data set of a config: `digits`, which ships with scikit-learn, or a prepared TFDS one.

    Raises:
      UserError: the data set is unknown, not prepared, or does not fit.
    """
    if config.data.name == "digits":
        if config.data.data_dir is not None:
            raise UserError("data.data_dir: digits ships with scikit-learn and is read from no directory; leave it out")
        from loft_jax.data.digits import load_digits

        return load_digits(config.seed)
    from loft_jax.data.tfds import load_tfds

    return load_tfds(config.data.name, config.data.data_dir)
