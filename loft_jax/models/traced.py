"""A network of any origin as a `Network`: its filter groups are found by tracing."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax.extend.core import ClosedJaxpr

from loft_jax.filters import FilterGroup, extract, flatten_paths, unflatten_paths
from loft_jax.models.source import Norms, Shapes, Source, Tree
from loft_jax.models.tracing.discovery import Discovery, Traces, trace

_TRACED_BATCH = 2


@dataclass(frozen=True)
class TracedNetwork:
    """A Linen or NNX module that declares nothing.

    Attributes:
      source: the module.
      image_shape: of one example: (height, width, channels), or (features,).
      dtype: dtype of the computation; variables and logits are float32.
      widths: group name -> number of its filters, for groups that are narrower than in the module.
      branch_scales: group name -> factor on what is computed from its filters.
      norms: how batch norms work in training.
    """

    source: Source
    image_shape: tuple[int, ...]
    dtype: Any = jnp.float32
    widths: Mapping[str, int] = FrozenDict()
    branch_scales: Mapping[str, float] = FrozenDict()
    norms: Norms = field(default=Norms())

    declares_groups: ClassVar[bool] = False

    @property
    def discovery(self) -> Discovery:
        """What tracing finds in the network at its full widths."""
        return discover(self.source, self.image_shape)

    def filter_groups(self) -> tuple[FilterGroup, ...]:
        """Return the groups that can be split, with their current widths."""
        return self.discovery.groups(self.widths)

    def left_whole(self) -> Mapping[str, str]:
        """Return the layers whose filters cannot be split, and why: name -> reason."""
        return {axis.name: axis.reason for axis in self.discovery.axes if axis.reason}

    def with_widths(self, widths: Mapping[str, int]) -> Self:
        """Return the same architecture with these numbers of filters in the named groups. Raises ValueError."""
        return replace(self, widths=FrozenDict({**self.widths, **self._check_names(widths)}))

    def with_branch_scales(self, scales: Mapping[str, float]) -> Self:
        """Return the same network with what is computed from the named groups multiplied by these factors."""
        return replace(self, branch_scales=FrozenDict({**self.branch_scales, **self._check_names(scales)}))

    def with_norms(self, *, axis: str | None = None, momentum: float | None = None) -> Self:
        """Return the same network with norms that average over this mesh axis, and use this momentum."""
        return replace(self, norms=Norms(axis, self.norms.momentum if momentum is None else momentum))

    def clone(self, **changes: Any) -> Self:
        """Return the same network with other attributes, as Linen modules do."""
        return replace(self, **changes)

    def init(self, rngs: jax.Array, x: Any) -> Tree:
        """Initialise {"params", "batch_stats"}, float32, for images x, [batch, ...]."""
        variables = self.source.init(rngs, x, self._shapes)
        flat = flatten_paths(variables)
        if self.widths and any(flat[path].shape != shape for path, shape in self._shapes.items()):
            # A module of fixed widths: the first filters of the full one.
            kept = {name: np.arange(width) for name, width in self.widths.items()}
            variables = extract(variables, self.discovery.groups(), kept)
        return variables

    def apply(
        self,
        variables: Tree,
        x: jax.Array,
        train: bool = False,
        *,
        mutable: Any = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Any:
        """Map examples [batch, ...] to float32 logits [batch, classes], as `Network` says.

        Args:
          rngs: {"dropout": key} for modules that draw numbers in training.
        """
        params = self._scale(variables["params"])
        if self.dtype != jnp.float32:
            params = jax.tree.map(lambda leaf: leaf.astype(self.dtype), params)
        variables = {"params": params, "batch_stats": variables.get("batch_stats", {})}
        key = rngs["dropout"] if train and rngs else None
        result, statistics = self.source.apply(
            variables, x.astype(self.dtype), train=train, shapes=self._shapes, norms=self.norms, key=key
        )
        logits = _logits(result).astype(jnp.float32)
        return (logits, {"batch_stats": statistics}) if mutable else logits

    @property
    def _shapes(self) -> Shapes:
        return self.discovery.shapes(self.widths) if self.widths else {}

    def _scale(self, params: Tree) -> Tree:
        if not self.branch_scales:
            return params
        flat = flatten_paths({"params": params})
        for path, axis, factors in self.discovery.consumer_factors(self.branch_scales, self.widths):
            shape = [-1 if a == axis else 1 for a in range(flat[path].ndim)]
            flat[path] = flat[path] * jnp.asarray(factors.reshape(shape), flat[path].dtype)
        return unflatten_paths(flat)["params"]

    def _check_names(self, by_group: Mapping[str, Any]) -> Mapping[str, Any]:
        known = [group.name for group in self.discovery.groups()]
        if unknown := sorted(set(by_group) - set(known)):
            raise ValueError(f"no such filter group: {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
        return by_group


@lru_cache(maxsize=16)
def discover(source: Source, image_shape: tuple[int, ...]) -> Discovery:
    """Trace a module for examples of this shape, and find its filter groups.

    Raises:
      ValueError: the module cannot be initialised or called with such a batch, or returns no [batch, classes].
    """
    images = jax.ShapeDtypeStruct((_TRACED_BATCH, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def run(variables: Mapping[str, Any], images: Any, key: Any, *, train: bool, shapes: Shapes) -> tuple[Any, Tree]:
        # Nested dicts of paths have no empty collection.
        tree = {"batch_stats": {}} | unflatten_paths(dict(variables))
        result, statistics = source.apply(tree, images, train=train, shapes=shapes, norms=Norms(), key=key)
        return _logits(result), {"batch_stats": statistics} if train else {}

    variables = jax.eval_shape(lambda key, x: source.init(key, x, {}), key, images)
    flat = flatten_paths(variables)
    evaluation, _ = trace(lambda v, x, k: run(v, x, k, train=False, shapes={}), variables, images, key)
    training, updated = trace(lambda v, x, k: run(v, x, k, train=True, shapes={}), variables, images, key)
    _check_logits(source, evaluation.out_avals[0].shape)

    def trial(shapes: Shapes) -> tuple[ClosedJaxpr, ClosedJaxpr]:
        narrow = {path: jax.ShapeDtypeStruct(shape, flat[path].dtype) for path, shape in shapes.items()}
        traces = []
        for train in (False, True):
            found, paths = trace(lambda v, x, k, t=train: run(v, x, k, train=t, shapes=shapes), narrow, images, key)
            logits, *statistics = found.out_avals
            _check_logits(source, logits.shape)
            for path, leaf in zip(paths, statistics, strict=True):
                if leaf.shape != shapes[path]:
                    raise ValueError(f"{path} becomes {leaf.shape} where {shapes[path]} is expected")
            traces.append(found)
        return traces[0], traces[1]

    shapes = {path: leaf.shape for path, leaf in flat.items()}
    return Discovery(Traces(shapes, evaluation, training, updated, _TRACED_BATCH), trial)


def _check_logits(source: Source, shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != _TRACED_BATCH:
        raise ValueError(
            f"{source.name}: returns an array of shape {shape} for {_TRACED_BATCH} examples; "
            "must return logits [batch, classes]"
        )


def _logits(result: Any) -> Any:
    """Return the logits of what a module returns, which may be the first of several results."""
    return result[0] if isinstance(result, tuple | list) else result
