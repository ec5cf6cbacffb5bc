"""What a start ran on: host, processor, cards and their driver, versions. Loads neither JAX nor NumPy."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from loft_jax import __version__

_PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "flax", "optax", "numpy")


def describe_machine() -> dict[str, Any]:
    """Describe this machine: "cards" are lines of nvidia-smi, [] where there is none."""
    return {
        "host": platform.node(),
        "cores": os.cpu_count(),
        "cards": _cards(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "loft_jax": __version__,
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _cards() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
