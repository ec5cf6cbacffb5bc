"""LoFT in JAX/Flax: filter-wise distributed pretraining of CNNs that finds lottery tickets (arXiv 2210.16169)."""

from importlib import import_module
from typing import Any

# Lazy (PEP 562): `python -m loft_jax.train` imports this file first, and a typo must be reported before JAX is loaded.
_EXPORTS = {
    "FilterGroup": "loft_jax.models.groups",
    "create_model": "loft_jax.models",
    "deal_partition": "loft_jax.partition",
    "draw_partition": "loft_jax.partition",
    "expected_footrule": "loft_jax.metric",
    "extract": "loft_jax.partition",
    "filter_scores": "loft_jax.metric",
    "footrule": "loft_jax.metric",
    "footrule_matrix": "loft_jax.metric",
    "load_checkpoint": "loft_jax.checkpoint",
    "merge": "loft_jax.partition",
    "normalised_footrule": "loft_jax.metric",
    "prune": "loft_jax.partition",
    "rank_filters": "loft_jax.metric",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'loft_jax' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
