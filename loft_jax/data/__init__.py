"""Image-classification data sets by name: arrays in memory, or streamed from files."""

from loft_jax.config import Config
from loft_jax.data.dataset import Dataset
from loft_jax.data.streamed import StreamedDataset
from loft_jax.errors import UserError


def load_dataset(config: Config) -> Dataset | StreamedDataset:
    """The data set of a config: `digits`, which ships with scikit-learn, or a prepared TFDS one.

    Raises:
      UserError: the data set is unknown, not prepared, or not of the kind that `data.loading` asks for.
    """
    if config.data.name == "digits":
        if config.data.data_dir is not None:
            raise UserError("data.data_dir: digits ships with scikit-learn and is read from no directory; leave it out")
        if config.data.loading == "stream":
            raise UserError("data.loading=stream: digits ships with scikit-learn, not as files to stream; use auto")
        from loft_jax.data.digits import load_digits

        return load_digits(config.seed)
    from loft_jax.data.tfds import load_tfds

    return load_tfds(config.data)
