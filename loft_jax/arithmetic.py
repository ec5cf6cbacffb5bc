"""JAX's options that change numbers: fixed, so that a run is the same for every user whatever the environment says."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

import jax

from loft_jax.randomness import IMPLEMENTATION

# Options that a user's environment may set, and that change numbers or break programs: name -> what they are here.
# What may differ between runs is a setting of the run, and saved with it.
_FIXED = {
    "jax_default_prng_impl": IMPLEMENTATION,
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_softmax_custom_jvp": False,
    "jax_use_direct_linearize": True,
    "jax_allow_f16_reductions": True,
    "jax_disable_most_optimizations": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_transfer_guard": "allow",
    "jax_transfer_guard_host_to_device": "allow",
    "jax_transfer_guard_device_to_device": "allow",
    "jax_transfer_guard_device_to_host": "allow",
}
_PRECISION = "jax_default_matmul_precision"


def fix_arithmetic(matmul_precision: str = "default") -> None:
    """Give JAX's options that change numbers, or break programs, the same values whatever the environment says.

    Says on stderr which of the environment's have no effect.
    """
    precision = None if matmul_precision == "default" else matmul_precision
    for name, value in {**_FIXED, _PRECISION: precision}.items():
        if name not in jax.config.values:
            continue  # Versions of JAX differ in them.
        before = getattr(jax.config.values[name], "value", jax.config.values[name])
        if before != value:
            jax.config.update(name, value)
        if before != value and name.upper() in os.environ:
            instead = (
                f"; {_PRECISION.removeprefix('jax_default_')} is a setting of the run" if name == _PRECISION else ""
            )
            print(f"note      {name.upper()}={before} has no effect here{instead}", file=sys.stderr, flush=True)


@contextmanager
def keep_jax_options() -> Generator[None]:
    """Give the options that `configure_jax` changes back to a user's program at the end of the block."""
    before = {name: jax.config.values[name] for name in (*_FIXED, _PRECISION) if name in jax.config.values}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
