"""A worker's state between its local steps, in as few arrays as possible.

A step updates every array by a program of its own, and a network has five small vectors for every convolution. So all
vectors of the parameters are one array, and so are their momentum and the running statistics. In low precision the
network computes with copies of the kernels. They are kept too: the update that writes a kernel also writes its copy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from loft_jax.filters import MOMENTS, flatten_paths, unflatten_paths
from loft_jax.loft.state import State

Tree = dict[str, Any]

_LIKE_PARAMS = ("kept", *MOMENTS)

# Path and shape of each array that a packed vector holds, in their order.
Layout = tuple[tuple[str, tuple[int, ...]], ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PackedState:
    """What local steps change, packed: a pytree.

    Attributes:
      copies: the kernels in the network's dtype, a tree like "kernels"; None if that is the dtype of the parameters.
      kept, momentum, second_moment: {"kernels", "vectors"}, as `params`; None where the state has none.
      params: {"kernels": nested dict of the arrays that are not vectors, "vectors": float32 [values]}.
      statistics: all running statistics, float32 [values].
      layouts: layout of the vectors, and of the statistics.
    """

    copies: Any
    kept: Tree | None
    momentum: Tree
    params: Tree
    second_moment: Tree | None
    statistics: jax.Array
    layouts: tuple[Layout, Layout] = field(metadata={"static": True})

    @classmethod
    def pack(cls, state: State, dtype: Any) -> "PackedState":
        """Pack a state with moments, for a network that computes in this dtype."""
        params, layout = _pack(state.params)
        flat = flatten_paths(state.batch_stats)
        statistics, of_statistics = _concatenate(flat)
        packed = cls(
            copies=None,
            kept=None if state.kept is None else _pack(state.kept)[0],
            momentum=_pack(state.momentum)[0],
            params=params,
            second_moment=None if state.second_moment is None else _pack(state.second_moment)[0],
            statistics=statistics,
            layouts=(layout, of_statistics),
        )
        return packed.with_copies(dtype)

    def with_copies(self, dtype: Any) -> "PackedState":
        """Return the same state with copies of its kernels in this dtype, where that is not their own."""
        kernels = self.params["kernels"]
        if all(leaf.dtype == dtype for leaf in jax.tree.leaves(kernels)):
            return self
        return replace(self, copies=jax.tree.map(lambda leaf: leaf.astype(dtype), kernels))

    def unpack(self) -> State:
        """Invert `pack`."""
        likewise = {name: getattr(self, name) for name in _LIKE_PARAMS}
        unpacked = {name: None if tree is None else self.unpack_params(tree) for name, tree in likewise.items()}
        return State(params=self.unpack_params(self.params), batch_stats=self.batch_stats, **unpacked)

    def unpack_params(self, packed: Mapping[str, Any]) -> Tree:
        """Return the nested dict of all parameters, from a dict like `params`."""
        return unflatten_paths(flatten_paths(packed["kernels"]) | _split(packed["vectors"], self.layouts[0]))

    @property
    def batch_stats(self) -> Tree:
        """The running statistics, a nested dict."""
        return unflatten_paths(_split(self.statistics, self.layouts[1]))

    @property
    def trained(self) -> Tree:
        """What a step differentiates by, a dict like `params`: the copies of the kernels if there are any."""
        return self.params if self.copies is None else self.params | {"kernels": self.copies}


def pack_statistics(batch_stats: Mapping[str, Any]) -> jax.Array:
    """Return running statistics as `PackedState.statistics` holds them."""
    return _concatenate(flatten_paths(batch_stats))[0]


def _pack(params: Mapping[str, Any]) -> tuple[Tree, Layout]:
    flat = flatten_paths(params)
    # By name too, because weight decay is for kernels.
    kernels = {path: leaf for path, leaf in flat.items() if leaf.ndim > 1 or path.split("/")[-1] == "kernel"}
    vectors, layout = _concatenate({path: leaf for path, leaf in flat.items() if path not in kernels})
    return {"kernels": unflatten_paths(kernels), "vectors": vectors}, layout


def _concatenate(flat: Mapping[str, jax.Array]) -> tuple[jax.Array, Layout]:
    # Sorted, because the dicts of one variable come in several orders.
    layout = tuple((path, flat[path].shape) for path in sorted(flat))
    if not flat:
        return jnp.zeros(0, jnp.float32), layout
    return jnp.concatenate([flat[path].reshape(-1) for path, _ in layout]), layout


def _split(vector: jax.Array, layout: Layout) -> Tree:
    if not layout:
        return {}
    parts = jax.lax.split(vector, [math.prod(shape) for _, shape in layout])
    return {path: part.reshape(shape) for (path, shape), part in zip(layout, parts, strict=True)}
