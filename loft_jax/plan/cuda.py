"""NVIDIA cards that need not be there: what the compiler must know of a card, and devices to compile for.

The compiler for CUDA is JAX's plug-in. It needs neither a card nor a driver if it is not asked to look for them.
"""

import importlib.util
import os
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from loft_jax.errors import UserError

_PLUGIN = "jax_cuda12_plugin"
_INSTALL = "pip install 'loft_jax[cuda12]'"
# The plug-in would refuse to start without a driver; and if there is a card, it is left alone.
_ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": "-1"}


@dataclass(frozen=True)
class Card:
    """What the compiler is told of a card; defaults are those of an H100 SXM.

    NVIDIA's tuning guides for Ampere and Hopper have these figures, and so have XLA's own descriptions of the cards.

    Attributes:
      kind: its name in JAX.
      capability: major compute capability.
      cores: streaming multiprocessors.
      fpus: float32 units of a core.
      clock_ghz: highest clock.
      memory: bytes of memory.
      bandwidth: bytes a second of that memory.
      l2: bytes of second-level cache.
      shared: bytes of shared memory of a core; a block may have 1 kB less.
    """

    kind: str = "NVIDIA H100 80GB HBM3"
    capability: int = 9
    cores: int = 132
    fpus: int = 128
    clock_ghz: float = 1.98
    memory: int = 84_929_347_584
    bandwidth: int = 3_352_320_000_000
    l2: int = 52_428_800
    shared: int = 233_472

    def describe(self) -> str:
        """Return the description that the compiler reads, a GpuTargetConfigProto in text format."""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared - 1024}
  shared_memory_per_core: {self.shared}
  core_count: {self.cores} fpus_per_core: {self.fpus} clock_rate_ghz: {self.clock_ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth} l2_cache_size: {self.l2} device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {self.capability} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{self.kind}"
"""


CARDS = {
    "h100": Card(),
    "h200": Card(kind="NVIDIA H200", memory=150_109_945_856, bandwidth=4_800_000_000_000),
    "a100": Card(
        kind="NVIDIA A100-SXM4-80GB",
        capability=8,
        cores=108,
        fpus=64,
        clock_ghz=1.41,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        l2=41_943_040,
        shared=167_936,
    ),
}


def prepare_environment() -> None:
    """Let the plug-in start on a machine without a driver; call before JAX looks for devices, then `find_devices`."""
    for variable, value in _ENVIRONMENT.items():
        os.environ[variable] = value


def check_plugin(topology: str) -> None:
    """Raise UserError if JAX's plug-in for CUDA 12 is missing, or is made for another JAX. Imports no JAX."""
    need = f"--topology {topology}: compiling for NVIDIA cards needs JAX's plug-in for CUDA 12"
    if importlib.util.find_spec(_PLUGIN) is None:
        other = importlib.util.find_spec("jax_cuda13_plugin") is not None
        found = ", but the installed one is for CUDA 13" if other else ", which is not installed"
        advice = " in an environment of its own" if other else ""
        raise UserError(f"{need}{found}; {_INSTALL}{advice}")
    plugin, jaxlib = (metadata.version(name) for name in ("jax-cuda12-plugin", "jaxlib"))
    if plugin != jaxlib:
        raise UserError(f"{need} in the version of jaxlib, {jaxlib}, but {plugin} is installed; {_INSTALL} -U")


def find_devices(topology: str, kind: str, hosts: int, cards: int) -> list[Any]:
    """Return the devices of some hosts with some cards each; they can only be compiled for.

    Args:
      topology: the name as it was given, for messages.
      kind: a key of `CARDS`.

    Raises:
      UserError: the plug-in does not start.
    """
    from jax.experimental import topologies

    try:
        description = CARDS[kind].describe()
        found = topologies.get_topology_desc(platform="cuda", topology=f"1x{hosts}x{cards}", target_config=description)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"--topology {topology}: JAX's plug-in for CUDA 12 makes no such devices ({reason}); {_INSTALL} -U in a "
            "fresh environment"
        ) from None
    return list(found.devices)
