"""Users' modules that declare their filter groups: tried for the data's images, and then used as they are."""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from loft_jax.filters import extract, filter_cuts, flatten_paths
from loft_jax.models.linen import LinenSource
from loft_jax.models.network import Network
from loft_jax.models.source import Source
from loft_jax.models.traced import TracedNetwork

_METHODS = ("filter_groups", "left_whole", "with_widths", "with_branch_scales", "with_norms")
_BATCH = 2


class DeclarationError(ValueError):
    """A module says that it declares its filter groups, and does not do it well; the message goes on after "it"."""


def make_network(source: Source, image_shape: tuple[int, ...], dtype: Any) -> Network:
    """Make a network for examples of this shape of a module: one that declares its filter groups is used as it is.

    Raises:
      DeclarationError: the module's `declares_groups` is true, but it is no `Network`, or what it declares is not so.
    """
    if getattr(source.module, "declares_groups", False) is not True:
        source = source.with_dtype(dtype) if isinstance(source, LinenSource) else source
        return TracedNetwork(source, image_shape, dtype)
    if missing := _find_missing(source.module):
        raise DeclarationError(
            f"{missing} (what it needs: loft_jax/models/network.py); write what is missing, or leave declares_groups "
            "out, and the groups are found by tracing"
        )
    assert isinstance(source, LinenSource)
    network = cast(Network, source.with_dtype(dtype).module)
    _try(network, image_shape)
    return network


def _find_missing(module: Any) -> str | None:
    """Say what a module lacks to be a `Network`; None if it lacks nothing."""
    if not isinstance(module, nn.Module):
        return "is an NNX module, and only Linen modules can declare their groups"
    if missing := [name for name in _METHODS if not callable(getattr(module, name, None))]:
        return f"has no {', '.join(missing)}"
    if all(field.name != "dtype" for field in fields(module)):
        return "has no field dtype, the dtype of its computation"
    if unhashable := [f.name for f in fields(module) if not _is_hashable(getattr(module, f.name, None))]:
        return f"keeps {', '.join(unhashable)} in lists or dicts, which cannot be hashed (use tuples and FrozenDict)"
    return None


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _try(network: Network, image_shape: tuple[int, ...]) -> None:
    """Trace a network at its own widths in evaluation, and with half of the filters of every group in training."""
    images = jax.ShapeDtypeStruct((_BATCH, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(network.init, key, images)
    shapes = {path: leaf.shape for path, leaf in flatten_paths(variables).items()}
    groups = network.filter_groups()
    for path, cuts in filter_cuts(groups).items():
        if path not in shapes:
            raise DeclarationError(f"has no {path!r}, which filter group {cuts[0].parts[0].group!r} touches")
        for cut in cuts:
            try:
                cut.check(path, shapes[path])
            except ValueError as error:
                raise DeclarationError(f"declares what is not so: {error}") from None
    _check_logits(jax.eval_shape(network.apply, variables, images))
    halves = {group.name: max(1, group.width // 2) for group in groups}
    narrow = network.with_widths(halves)
    kept = {name: np.arange(width) for name, width in halves.items()}
    expected = jax.eval_shape(partial(extract, groups=groups, owned=kept), variables)
    _compare(flatten_paths(jax.eval_shape(narrow.init, key, images)), flatten_paths(expected))
    apply = partial(narrow.apply, train=True, mutable=["batch_stats"])
    logits, _ = jax.eval_shape(apply, expected, images, rngs={"dropout": key})
    _check_logits(logits)


def _compare(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for path in sorted({*found, *expected}):
        got, wanted = (tree[path].shape if path in tree else "nothing" for tree in (found, expected))
        if got != wanted:
            raise DeclarationError(
                f"makes {got} of {path!r} when with_widths asks for half of the filters of every group, and its "
                f"filter groups say {wanted}"
            )


def _check_logits(logits: Any) -> None:
    if logits.ndim != 2 or logits.shape[0] != _BATCH or logits.dtype != jnp.float32:
        raise DeclarationError(
            f"returns {logits.dtype} {logits.shape} for {_BATCH} examples; must return float32 logits [batch, classes]"
        )
