"""Arrays of any origin, as JAX takes them."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import numpy as np


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
