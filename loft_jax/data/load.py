"""Image-classification data sets by name: arrays in memory, or streamed from files."""

from importlib.util import find_spec

from loft_jax.config import Config
from loft_jax.data.streaming.dataset import AnyDataset
from loft_jax.errors import UserError


def load_dataset(config: Config) -> AnyDataset:
    """Load the data set of a config: `digits`, which ships with scikit-learn, `arrays` of a file, or a TFDS data set.

    Raises:
      UserError: the data set is unknown, not prepared, damaged, or not of the kind that `data.loading` asks for.
    """
    if config.data.name == "digits":
        from loft_jax.data.digits import load_digits

        return load_digits(config.seed)
    if config.data.name == "arrays":
        from loft_jax.data.arrays import load_arrays

        assert config.data.data_dir is not None  # The config has been validated.
        return load_arrays(config.data.data_dir)
    check_tfds_installed(config.data.name)
    from loft_jax.data.tfds import load_tfds

    return load_tfds(config.data)


def check_tfds_installed(name: str) -> None:
    """Raise UserError if a data set of this name cannot be read because TFDS, an optional dependency, is missing."""
    missing = [library for library in ("tensorflow_datasets", "array_record", "grain") if find_spec(library) is None]
    if missing:
        raise UserError(
            f"data.name={name}: TFDS data sets need libraries that are not installed ({', '.join(missing)}); "
            "pip install 'loft_jax[tfds]', or use data.name=digits or arrays"
        )
