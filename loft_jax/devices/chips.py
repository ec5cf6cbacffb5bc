"""Accelerators and the figures that their vendors state: the one table for plans and for shares of a peak.

Imports no JAX. Figures are of one chip or card, in 1e12 operations and 1e9 bytes a second.

TPUs: Google's pages, docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e: peak in bfloat16, memory, its bandwidth, and
the bandwidth of a chip's links for both ways together; half of it is for sending. The links of v4 are not on its page,
but in arXiv 2304.01433: six links of 50 GB/s each way. v4's and v5p's memory is stated in GiB. No peak is stated for
float32; by JAX's default these chips multiply float32 in bfloat16, so the same peak holds.

GPUs: NVIDIA's data sheets of the SXM cards, without sparsity, which doubles the printed peaks; NVLink is printed for
both ways together. By JAX's default (jax.lax.Precision.DEFAULT) these cards multiply float32 in TF32, on the tensor
cores; `tflops_true_float32` is the peak with jax_default_matmul_precision=highest. Memory is what CUDA shows of the
card. The network is that of NVIDIA's DGX hosts, one adapter a card: 400 Gb/s (DGX H100, H200), 200 Gb/s (DGX A100).
"""

from dataclasses import dataclass, replace
from typing import Literal

GB = 1e9
GIB = 2**30 / GB
Platform = Literal["tpu", "cuda", "cpu"]


@dataclass(frozen=True)
class Chip:
    """The figures of one chip or card; None if none is stated.

    Attributes:
      name: the name in --topology.
      tflops: peak of bfloat16 products, 1e12 operations a second.
      memory_gb: memory for programs and arrays, 1e9 bytes.
      memory_gbps: bandwidth between the chip and its memory, 1e9 bytes a second.
      link_gbps: bandwidth of all links together, one way, 1e9 bytes a second; of GPUs those within a host.
      tflops_float32: peak of float32 products as JAX computes them by default; None if it is `tflops`.
      tflops_true_float32: peak of float32 products that round nothing away.
      network_gbps: bandwidth of a card to other hosts, one way, 1e9 bytes a second; None if `link_gbps` holds there.
      kernel_us: microseconds that starting a kernel takes on the device; None if it is not counted.
      platform: JAX's name of the platform.
      kinds: names of the chip in JAX, `device.device_kind`.
    """

    name: str
    tflops: float | None = None
    memory_gb: float | None = None
    memory_gbps: float | None = None
    link_gbps: float | None = None
    tflops_float32: float | None = None
    tflops_true_float32: float | None = None
    network_gbps: float | None = None
    kernel_us: float | None = None
    platform: Platform = "tpu"
    kinds: tuple[str, ...] = ()

    def peak_tflops(self, precision: str) -> float | None:
        """Return the peak at a config's `precision` (float32 or bfloat16), 1e12 operations a second."""
        return (self.tflops_float32 or self.tflops) if precision == "float32" else self.tflops

    def with_figures(self, **figures: float | None) -> "Chip":
        """Return the chip with those of these figures that are not None."""
        return replace(self, **{name: figure for name, figure in figures.items() if figure is not None})


# Starting a kernel takes 2 to 4 microseconds when the host keeps up.
_KERNEL_US = 3.0
_H100 = Chip(
    name="h100",
    tflops=989.4,
    memory_gb=84.93,
    memory_gbps=3350,
    link_gbps=900 / 2,
    tflops_float32=494.7,
    tflops_true_float32=66.9,
    network_gbps=400 / 8,
    kernel_us=_KERNEL_US,
    platform="cuda",
    kinds=("NVIDIA H100 80GB HBM3",),
)
_H200 = replace(_H100, name="h200", memory_gb=150.1, memory_gbps=4800, kinds=("NVIDIA H200", "NVIDIA H200 141GB HBM3e"))
_A100 = Chip(
    name="a100",
    tflops=312,
    memory_gb=85.1,
    memory_gbps=2039,
    link_gbps=600 / 2,
    tflops_float32=156,
    tflops_true_float32=19.5,
    network_gbps=200 / 8,
    kernel_us=_KERNEL_US,
    platform="cuda",
    kinds=("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM-80GB"),
)
CHIPS = {
    "v4": Chip("v4", 275, 32 * GIB, 1200, 300, kinds=("TPU v4",)),
    "v5e": Chip("v5e", 197, 16, 819, 400 / 2, kinds=("TPU v5 lite", "TPU v5e")),
    "v5p": Chip("v5p", 459, 95 * GIB, 2765, 1200 / 2, kinds=("TPU v5", "TPU v5p")),
    "v6e": Chip("v6e", 918, 32, 1638, 800 / 2, kinds=("TPU v6 lite", "TPU v6e")),
    "h100": _H100,
    "h200": _H200,
    "a100": _A100,
}
_BY_KIND = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}


def find_chip(device_kind: str) -> Chip | None:
    """Return the chip that JAX calls so in `device.device_kind`; None for all others.

    Names must be equal: PCIe cards, cards with less memory and parts of a card (MIG) have other figures.
    """
    return _BY_KIND.get(device_kind)
