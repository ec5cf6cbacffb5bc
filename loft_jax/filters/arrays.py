"""Arrays of any origin, as JAX takes them; and nested dicts of them as paths, which is how filter groups name them."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def flatten_paths(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> leaf of nested dicts, slash-joined from the root: "params/stage2_block2/conv1/kernel"."""
    return flatten_dict(tree, sep="/")


def unflatten_paths(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten_paths`."""
    return unflatten_dict(flat, sep="/")


def native(tree: Any) -> Any:
    """The tree with its numpy arrays in this machine's byte order, which is the only one that JAX knows."""
    return jax.tree.map(_native, tree)


def jit_of_any_origin(function: Callable[..., Any]) -> Callable[..., Any]:
    """jit, for a function of arrays in either byte order."""
    jitted = jax.jit(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jitted(*native(args), **native(kwargs))

    return call


def _native(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
        return leaf.astype(leaf.dtype.newbyteorder("="))
    return leaf
