"""Arrays of any origin in the byte order that JAX accepts, and nested dicts of arrays as the paths of filter groups."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def flatten_paths(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Map nested dicts to {path: leaf}; paths are slash-joined from the root: "params/stage2_block2/conv1/kernel"."""
    return flatten_dict(tree, sep="/")


def unflatten_paths(flat: dict[str, Any]) -> dict[str, Any]:
    """Invert `flatten_paths`."""
    return unflatten_dict(flat, sep="/")


def native(tree: Any) -> Any:
    """Return the tree with its numpy arrays in this machine's byte order, the only one that JAX supports."""
    return jax.tree.map(_native_leaf, tree)


def jit_any_byte_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jit a function whose numpy arguments may have either byte order."""
    jitted = jax.jit(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return jitted(*native(args), **native(kwargs))

    return call


def _native_leaf(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
        return leaf.astype(leaf.dtype.newbyteorder("="))
    return leaf
