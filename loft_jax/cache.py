"""Where things live that make the next run start faster and can be deleted at any time."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any


def cache_directory() -> Path:
    """$LOFT_JAX_CACHE, or ~/.cache/loft_jax."""
    return Path(os.environ.get("LOFT_JAX_CACHE") or "~/.cache/loft_jax").expanduser()


def keep_compiled_programs() -> None:
    """Let JAX keep there what it compiles, unless the environment names another place."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def cache_array(path: Path, array: Any) -> None:
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
