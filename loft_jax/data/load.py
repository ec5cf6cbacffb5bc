"""Image-classification data sets by name: arrays in memory, or streamed from files."""

from dataclasses import replace
from importlib.util import find_spec

from loft_jax.config import Config
from loft_jax.data.dataset import Dataset
from loft_jax.data.holdout import hold_out_validation
from loft_jax.data.streaming.dataset import AnyDataset
from loft_jax.errors import UserError


def load_dataset(config: Config) -> AnyDataset:
    """Load the data set of a config: `digits`, which ships with scikit-learn, the user's own, or a TFDS data set.

    Raises:
      UserError: the data set is unknown, not prepared, damaged, or not of the kind that the settings of `data` ask for.
      TypeError: the config is none, as that of a checkpoint whose settings are not known.
    """
    if not isinstance(config, Config):
        raise TypeError(
            f"config must be a Config, not {type(config).__name__}; for a run, load_checkpoint(RUN)['config']"
        )
    return prepare_dataset(_load(config), config)


def prepare_dataset(dataset: AnyDataset, config: Config) -> AnyDataset:
    """Return a data set as `data.flip` and `data.validation` want it. Raises UserError if it cannot be so."""
    flip, validation = config.data.flip, config.data.validation
    if not isinstance(dataset, Dataset):
        check_streamable(config, dataset.name)
        if flip not in (None, dataset.flip):
            use = "leave data.flip out" if flip else "use data.augment=false, or data.loading=device"
            raise UserError(f"data.flip={str(flip).lower()}: {dataset.name} is streamed, which decides about it; {use}")
        return dataset
    if flip and dataset.has_features:
        raise UserError(f"data.flip=true: {dataset.name} has features, which cannot be mirrored; leave data.flip out")
    if flip is not None:
        dataset = replace(dataset, flip=flip)
    return hold_out_validation(dataset, validation, config.seed) if validation else dataset


def check_streamable(config: Config, name: str) -> None:
    """Raise UserError if the settings ask for what streamed images do not have: a part for validation."""
    if config.data.validation:
        raise UserError(
            f"data.validation={config.data.validation:g}: {name} is streamed, and images are held out only of data "
            "that are kept on the device; leave data.validation out, or use data.loading=device if they fit"
        )


def _load(config: Config) -> AnyDataset:
    name, data_dir = config.data.name, config.data.data_dir
    if name == "digits":
        from loft_jax.data.digits import load_digits

        return load_digits(config.seed)
    if name == "arrays":
        from loft_jax.data.arrays import load_arrays

        assert data_dir is not None  # The config has been validated.
        return load_arrays(data_dir)
    if name == "folder":
        from loft_jax.data.folder import load_folder

        return load_folder(config.data)
    if name == "idx":
        from loft_jax.data.idx import load_idx

        assert data_dir is not None
        return load_idx(data_dir)
    check_tfds_installed(name)
    from loft_jax.data.tfds import load_tfds

    return load_tfds(config.data)


def check_tfds_installed(name: str) -> None:
    """Raise UserError if a data set of this name cannot be read because TFDS, an optional dependency, is missing."""
    missing = [library for library in ("tensorflow_datasets", "array_record", "grain") if find_spec(library) is None]
    if missing:
        raise UserError(
            f"data.name={name}: TFDS data sets need libraries that are not installed ({', '.join(missing)}); "
            "pip install 'loft_jax[tfds]', or use data.name=digits, folder, idx or arrays"
        )
