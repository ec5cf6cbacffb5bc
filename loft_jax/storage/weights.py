"""Weights to start from: variables read from a file, and checked against those of a network, shape by shape."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.errors import UserError, did_you_mean
from loft_jax.filters import flatten_paths, unflatten_paths
from loft_jax.storage.array_files import read_array_file

Tree = dict[str, Any]


def load_weights(path: str | Path, like: Mapping[str, Any], label: str = "model.weights") -> Tree:
    """Read a network's variables from a file, by their path names.

    The file names them as the network does, "params/conv1/kernel", or without the collection, "conv1/kernel". A
    collection other than "params" that the file does not have stays as it is in `like`; of what a checkpoint holds
    beside the variables nothing is read.

    Args:
      path: .safetensors, .npz or .msgpack file, or a directory that Orbax has written.
      like: variables of the network, collection first: arrays, or what has their shape and dtype.
      label: the setting that names the file, for messages.

    Returns:
      Nested dicts of numpy arrays, of the structure, shapes and dtypes of `like`.

    Raises:
      UserError: the file cannot be read; a variable is missing, or there is one that the network does not have; shapes
        differ; a value is not finite.
    """
    label = f"{label}={path}"
    arrays, wanted = _by_collection(read_array_file(Path(path).expanduser(), label), like), flatten_paths(like)
    there = {path.partition("/")[0] for path in arrays}
    needed = {path for path in wanted if path.partition("/")[0] in {"params", *there}}
    _check_names(label, needed, arrays)
    loaded = dict(wanted)
    for name in sorted(needed):
        shape, given = tuple(wanted[name].shape), arrays[name]
        if given.shape != shape:
            raise UserError(
                f"{label}: {name} is {given.shape} there, and {shape} in the network; use weights of the same model, "
                "width and number of classes"
            )
        loaded[name] = given.astype(wanted[name].dtype)
        if not np.isfinite(loaded[name].astype(np.float32)).all():
            raise UserError(f"{label}: {name} holds values that are not finite; use a checkpoint from before that")
    return unflatten_paths(loaded)


def _by_collection(arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of the network's collections, by path from the collection."""
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        inner = name.removeprefix("variables/").removesuffix("/value")
        if inner.partition("/")[0] in like:
            found[inner] = array
    return found or {f"params/{name.removesuffix('/value')}": array for name, array in arrays.items()}


def _check_names(label: str, needed: set[str], arrays: Mapping[str, np.ndarray]) -> None:
    missing, foreign = sorted(needed - arrays.keys()), sorted(arrays.keys() - needed)
    if missing:
        near = did_you_mean(missing[0], foreign, "use weights of the same model, with the names that Flax gives")
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{label}: holds no {missing[0]}{more}, of {len(needed)} variables of the network{near}")
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{label}: holds {foreign[0]}{more}, which the network does not have; use weights of the same model"
        )
