"""The table of accelerators: found by JAX's names, peaks by precision, and no JAX behind it."""

import importlib.util
import subprocess
import sys

import pytest

from loft_jax.devices.chips import CHIPS, find_chip
from loft_jax.plan.topology import Topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
    ],
)
def test_a_device_finds_its_figures(kind, name):
    assert find_chip(kind) is CHIPS[name]


@pytest.mark.parametrize(
    "kind", ["cpu", "", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A100-SXM4-40GB", "TPU v3"]
)
def test_a_device_with_other_figures_or_none_finds_nothing(kind):
    assert find_chip(kind) is None


def test_peaks_are_those_of_the_precision():
    assert (CHIPS["h100"].peak_tflops("bfloat16"), CHIPS["h100"].peak_tflops("float32")) == (989.4, 494.7)
    assert CHIPS["v5e"].peak_tflops("float32") == CHIPS["v5e"].peak_tflops("bfloat16") == 197
    assert CHIPS["h100"].with_figures(tflops=None, memory_gb=40.0).memory_gb == 40


@pytest.mark.parametrize("name", CHIPS)
def test_figures_are_complete_and_the_name_is_the_key(name):
    chip = CHIPS[name]
    assert chip.name == name
    assert chip.kinds
    assert all((chip.tflops, chip.memory_gb, chip.memory_gbps, chip.link_gbps))
    assert all((chip.tflops_float32, chip.tflops_true_float32, chip.network_gbps, chip.kernel_us)) == (
        chip.platform == "cuda"
    )


def test_the_table_is_read_without_jax():
    script = "import sys; from loft_jax.devices import find_chip; find_chip('x'); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_tpus_name_in_jax_is_in_the_table(name):
    topology = Topology.parse(name)
    assert find_chip(topology.devices()[0].device_kind) is CHIPS[topology.chip.name]
