"""Flax Linen modules as sources, at any width: `features` of their layers are set as they are called."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax

from loft_jax.models.norm import BatchNorm
from loft_jax.models.source import Norms, Shapes, Tree, mode_arguments

_WIDE_LAYERS = (nn.Conv, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Embed)
_COLLECTIONS = frozenset(("params", "batch_stats"))


@dataclass(frozen=True, eq=False)
class LinenSource:
    """A Linen module.

    Attributes:
      module: the module, not bound to variables.
    """

    module: nn.Module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinenSource) and self.module == other.module

    def __hash__(self) -> int:
        try:
            return hash(self.module)
        except TypeError:  # A field holds a list or a dict.
            return hash(type(self.module))

    @property
    def name(self) -> str:
        return type(self.module).__name__

    def with_dtype(self, dtype: Any) -> "LinenSource":
        """Return the same module with this dtype of computation, if it has a field for it."""
        has_field = any(field.name == "dtype" for field in fields(self.module))
        return LinenSource(self.module.clone(dtype=dtype)) if has_field else self

    def init(self, key: jax.Array, x: Any, shapes: Shapes) -> Tree:
        with nn.intercept_methods(_interceptor(shapes, Norms())):
            mode: dict[str, Any] = mode_arguments(self.module.__call__, False)
            variables = self.module.init(key, x, **mode)
        if others := set(variables) - _COLLECTIONS:
            raise ValueError(
                f"the module keeps variables in {', '.join(sorted(others))}; only params and batch_stats can be trained"
            )
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply(
        self, variables: Tree, x: jax.Array, *, train: bool, shapes: Shapes, norms: Norms, key: jax.Array | None
    ) -> tuple[Any, Tree]:
        mode: dict[str, Any] = mode_arguments(self.module.__call__, train)
        rngs = None if key is None else {"dropout": key, "params": key}
        with nn.intercept_methods(_interceptor(shapes, norms)):
            mutable = ["batch_stats"] if train else False
            result: Any = self.module.apply(variables, x, rngs=rngs, mutable=mutable, **mode)
        if not train:
            return result, variables["batch_stats"]
        return result[0], result[1].get("batch_stats", {})


def _interceptor(shapes: Shapes, norms: Norms) -> Callable[..., Any]:
    """Set the width of every layer, and how norms work, while its `__call__` runs."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, changes = context.module, {}
        if context.method_name == "__call__":
            if isinstance(module, nn.BatchNorm | BatchNorm):
                changes = {"axis_name": norms.axis} if norms.axis else {}
                changes |= {} if norms.momentum is None else {"momentum": norms.momentum}
            elif shapes and isinstance(module, _WIDE_LAYERS):
                changes = _widths_of(module, shapes, args)
        with _changed(module, changes):
            return call(*args, **kwargs)

    return intercept


def _widths_of(module: nn.Module, shapes: Shapes, args: Any) -> dict[str, Any]:
    path = "/".join(("params", *module.path))
    shape = shapes.get(f"{path}/kernel") or shapes.get(f"{path}/embedding")
    if shape is None:
        return {}
    if isinstance(module, nn.DenseGeneral):
        features = module.features
        return {"features": shape[-1] if isinstance(features, int) else tuple(shape[len(shape) - len(features) :])}
    if isinstance(module, nn.ConvTranspose) and module.transpose_kernel:
        return {"features": shape[-2]}
    changes = {"features": shape[-1]}
    if isinstance(module, nn.Conv) and module.feature_group_count > 1:
        changes["feature_group_count"] = args[0].shape[-1] // shape[-2]
    return changes


@contextmanager
def _changed(module: nn.Module, changes: dict[str, Any]) -> Generator[None]:
    # A module is frozen; what is set here is read by its own `__call__` alone, and then put back.
    before = {name: getattr(module, name) for name in changes}
    for name, value in changes.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
