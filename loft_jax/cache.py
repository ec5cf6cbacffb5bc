"""Where things live that make the next run start faster and can be deleted at any time."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any


def cache_directory() -> Path:
    """$LOFT_JAX_CACHE, or ~/.cache/loft_jax."""
    return Path(os.environ.get("LOFT_JAX_CACHE") or "~/.cache/loft_jax").expanduser()


def write_aside(path: Path, array: Any) -> None:
    """Write a NumPy array to a file of the cache, whole or not at all; where that fails, warn and go on without."""
    import numpy as np

    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            np.save(file, array)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        logging.getLogger(__name__).warning("%s is not cached: %s", path.name, error)
