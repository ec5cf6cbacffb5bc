"""Settings of JAX that hold for the whole process."""

import os
from collections.abc import Callable
from typing import Any

import jax

from loft_jax.config import Config
from loft_jax.files import cache_directory

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def configure_jax(config: Config) -> None:
    """Process-wide settings; call before JAX sees its devices. Again, with the same settings, it does nothing."""
    if jax.config.values["jax_num_cpu_devices"] != config.mesh.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
    flags = os.environ.get("XLA_FLAGS", "")
    if config.train.deterministic and _DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}"
    keep_compiled_programs()


def jit_once(function: Callable[[], Any]) -> Callable[[], Any]:
    """jit for what runs once, as initialisers do: on CPU unoptimised.

    Compiled at full effort there, the random numbers alone take longer than many rounds.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def keep_compiled_programs() -> None:
    """Let JAX keep there what it compiles, unless the environment names another place."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
