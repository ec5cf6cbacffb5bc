"""LoFT in JAX/Flax: filter-wise distributed pretraining of CNNs that finds lottery tickets (arXiv 2210.16169)."""

from importlib import import_module
from typing import Any

# Lazy (PEP 562): `python -m loft_jax.train` imports this file first, and a typo must be reported before JAX is loaded.
_EXPORTS = {
    "FilterGroup": "loft_jax.models.groups",
    "create_model": "loft_jax.models",
    "draw_partition": "loft_jax.partition",
    "extract": "loft_jax.partition",
    "load_checkpoint": "loft_jax.checkpoint",
    "merge": "loft_jax.partition",
    "prune": "loft_jax.partition",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'loft_jax' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
