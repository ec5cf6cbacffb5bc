"""Flax NNX modules as sources. They do not look at their stored widths, so narrower arrays run in the same graph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from loft_jax.models.source import Norms, Shapes, Tree, mode_arguments

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class NnxSource:
    """An NNX module, made anew from random numbers.

    Attributes:
      factory: rngs -> the module.
      name: for messages.
    """

    factory: Callable[[nnx.Rngs], nnx.Module]
    name: str

    @property
    def module(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self.factory(nnx.Rngs(0)))

    def init(self, key: jax.Array, x: Any, shapes: Shapes) -> Tree:
        module = self.factory(nnx.Rngs(key))
        return {name: _by_path(nnx.state(module, kind)) for name, kind in _KINDS.items()}

    def apply(
        self, variables: Tree, x: jax.Array, *, train: bool, shapes: Shapes, norms: Norms, key: jax.Array | None
    ) -> tuple[Any, Tree]:
        blueprint = _blueprint(self, train, norms)
        key = jax.random.key(0) if key is None else key
        module = nnx.merge(
            blueprint.graph,
            *(_fill(blueprint.states[name], variables[name]) for name in _KINDS),
            _draw(blueprint.random, key),
        )
        result = module(x, **mode_arguments(type(module).__call__, train))
        return result, _by_path(nnx.state(module, nnx.BatchStat)) if train else variables["batch_stats"]


_KINDS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


@dataclass(frozen=True, eq=False)
class _Blueprint:
    """A module without numbers: its graph, and its states of shapes."""

    graph: Any
    states: Mapping[str, Any]
    random: Any


@lru_cache(maxsize=64)
def _blueprint(source: NnxSource, train: bool, norms: Norms) -> _Blueprint:
    module = source.module
    module.train() if train else module.eval()
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.BatchNorm):
            part.axis_name = norms.axis or part.axis_name
            part.momentum = part.momentum if norms.momentum is None else norms.momentum
    try:
        graph, *states, random = nnx.split(module, *_KINDS.values(), nnx.RngState)
    except ValueError:
        kinds = {type(leaf).__name__ for _, leaf in nnx.iter_graph(module) if isinstance(leaf, nnx.Variable)}
        known = {"Param", "BatchStat", "RngKey", "RngCount"}
        raise ValueError(
            f"the module keeps variables of the kinds {', '.join(sorted(kinds - known))}; only nnx.Param and "
            "nnx.BatchStat can be trained"
        ) from None
    return _Blueprint(graph, dict(zip(_KINDS, states, strict=True)), random)


def _by_path(state: Any) -> Tree:
    """Return a state as nested dicts of arrays; numbers of list items become words."""
    flat = flatten_dict(nnx.to_pure_dict(state))
    return unflatten_dict({tuple(map(str, keys)): leaf for keys, leaf in flat.items()})


def _fill(state: Any, tree: Tree) -> Any:
    """Return a copy of a state with these arrays, given as `_by_path` returns them."""
    by_path = flatten_dict(tree)
    flat = flatten_dict(nnx.to_pure_dict(state))
    filled = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(filled, unflatten_dict({keys: by_path[tuple(map(str, keys))] for keys in flat}))
    return filled


def _draw(random: Any, key: jax.Array) -> Any:
    """Return the states of a module's random streams, all from one key."""
    flat: dict[Keys, Any] = flatten_dict(nnx.to_pure_dict(random))
    drawn = {}
    for number, (keys, leaf) in enumerate(sorted(flat.items(), key=lambda item: tuple(map(str, item[0])))):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        drawn[keys] = jax.random.fold_in(key, number) if is_key else jnp.zeros(leaf.shape, leaf.dtype)
    filled = jax.tree.map(lambda leaf: leaf, random)
    nnx.replace_by_pure_dict(filled, unflatten_dict(drawn))
    return filled
