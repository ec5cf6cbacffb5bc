"""Where things live that make the next run start faster and can be deleted at any time."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """$LOFT_JAX_CACHE, or ~/.cache/loft_jax."""
    return Path(os.environ.get("LOFT_JAX_CACHE") or "~/.cache/loft_jax").expanduser()
