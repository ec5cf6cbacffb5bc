"""JAX settings for the whole process."""

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from loft_jax.arithmetic import fix_arithmetic
from loft_jax.config import Config
from loft_jax.devices.memory import keep_freed_memory
from loft_jax.files import cache_directory

# Leaves products to the newer library, and convolutions to the older one.
_ALL_CORES = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
_DETERMINISTIC = "--xla_gpu_deterministic_ops"


def configure_jax(config: Config) -> None:
    """Set up JAX for this process; call before JAX finds its devices. Calling again with the same config is allowed."""
    if jax.config.values["jax_num_cpu_devices"] != config.mesh.cpu_devices:
        try:
            jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
        except RuntimeError:
            # In a notebook JAX may have been used before.
            print(
                f"note      JAX is in use already with {jax.device_count()} devices, so mesh.cpu_devices="
                f"{config.mesh.cpu_devices} has no effect; restart the process to have as many"
            )
    flags = os.environ.get("XLA_FLAGS", "")
    deterministic = f"{_DETERMINISTIC}={str(config.train.deterministic).lower()}"
    # The last one counts.
    if (config.train.deterministic or _DETERMINISTIC in flags) and not flags.endswith(deterministic):
        os.environ["XLA_FLAGS"] = f"{flags} {deterministic}"
    fix_arithmetic(config.matmul_precision)
    keep_compiled_programs()
    keep_freed_memory()


def jit_once(function: Callable[[], Any]) -> Callable[[], Any]:
    """Jit a function that runs only once, such as an initialiser: on CPU it is compiled without optimisation.

    With optimisation, compiling the random numbers alone takes longer there than many rounds.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def step_options(mesh: Mesh) -> dict[str, str] | None:
    """Return XLA's options for the program of a training step on this mesh.

    The convolutions that XLA for CPU takes in jax 0.10 use one thread each. Where a process has one device and several
    cores, its older ones, which use all cores, take three quarters of the time; with a device for every core they are
    slower. In jax 0.12 it chooses well by itself.
    """
    alone = mesh.devices.flat[0].platform == "cpu" and mesh.size == jax.local_device_count() == 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return _ALL_CORES if alone and cores > 1 and jax.__version_info__ < (0, 11) else None


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs in the cache directory, unless the environment names another place."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
