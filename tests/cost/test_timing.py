"""Times at stated figures: what bounds a program, kernel by kernel, and a collective within and between hosts."""

from dataclasses import replace

import pytest

from loft_jax.cost.compiled import Program
from loft_jax.cost.hlo import Collective
from loft_jax.cost.kernels import Kernel
from loft_jax.cost.timing import Seconds, cards_together, kernel_seconds, link_seconds, program_seconds
from loft_jax.devices.chips import Chip

# 1e12 operations, 1e11 bytes of memory, 1e10 bytes of links and 1e9 of network a second; 10 microseconds a kernel.
TPU = Chip("a chip", tflops=1, memory_gbps=100, link_gbps=10)
CARD = replace(TPU, tflops_float32=0.5, network_gbps=1, kernel_us=10, platform="cuda")


def kernel(kind, size, times=1):
    return Kernel("k", kind, read=size, written=0, times=times)


def test_without_kernels_a_program_takes_the_longer_of_arithmetic_and_memory():
    assert program_seconds(Program("step", 1, 2e9, 1e6), TPU, "float32") == Seconds(arithmetic=2e-3)
    assert program_seconds(Program("step", 1, 1e6, 5e8), TPU, "float32") == Seconds(memory=5e-3)
    assert program_seconds(Program("step", 1, 2e9, 1e6), replace(TPU, memory_gbps=None), "float32") is None
    assert program_seconds(Program("step", 1, 2e9, 1e6), Chip("cpu"), "float32") is None


def test_float32_has_its_own_peak():
    program = Program("step", 1, 2e9, 1e6)
    assert program_seconds(program, CARD, "float32") == Seconds(arithmetic=4e-3)
    assert program_seconds(program, CARD, "bfloat16") == Seconds(arithmetic=2e-3)


def test_each_kernel_takes_the_longer_of_its_bytes_and_its_start():
    found = kernel_seconds([kernel("reduction", 10_000_000, 3), kernel("copy", 8, 5)], 1e11, 10)
    assert found == Seconds(memory=pytest.approx(3e-4), launches=pytest.approx(5e-5))
    assert found.bound == "memory"


def test_products_take_at_least_their_arithmetic_and_the_rest_comes_on_top():
    kernels = (kernel("convolution", 10_000_000), kernel("product", 10), kernel("element-wise", 20_000_000))
    busy = program_seconds(Program("loop", 1, 1e9, 0, kernels=kernels), CARD, "bfloat16")
    assert busy == Seconds(arithmetic=pytest.approx(1e-3), memory=pytest.approx(2e-4))
    idle = program_seconds(Program("loop", 1, 1e6, 0, kernels=kernels), CARD, "bfloat16")
    assert idle == Seconds(memory=pytest.approx(3e-4), launches=pytest.approx(1e-5))
    # What a collective moves is in the time of sending.
    sent = (*kernels, kernel("collective", 10**9))
    assert program_seconds(Program("loop", 1, 1e6, 0, kernels=sent), CARD, "bfloat16") == idle


def test_seconds_add_up_and_name_the_longest():
    seconds = (Seconds(1, 2, 3) + Seconds(links=4)).times(2)
    assert seconds == Seconds(2, 4, 6, 8)
    assert (seconds.total, seconds.bound) == (20, "links")


def ring(kind, groups):
    return Collective(kind, 1_000_000, len(groups[0]), 1, groups)


TOGETHER, APART = (0, 0, 0, 0, 1, 1, 1, 1), (0, 1, 0, 1, 0, 1, 0, 1)
ALL = (tuple(range(8)),)
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))


@pytest.mark.parametrize(
    ("found", "hosts", "together", "bandwidth"),
    [
        (ring("all-reduce", ALL), (), None, 10e9),
        (ring("all-reduce", PAIRS), TOGETHER, None, 10e9),
        (ring("all-reduce", ALL), TOGETHER, 4, 4e9),
        (ring("all-reduce", PAIRS), APART, 1, 1e9),
        (ring("all-gather", ALL), (0, 0, 0, 0, 0, 0, 0, 1), 1, 1e9),
        (ring("collective-permute", ((0, 4),)), TOGETHER, 1, 1e9),
        (ring("collective-permute", ((0, 3),)), TOGETHER, None, 10e9),
    ],
)
def test_a_ring_is_as_slow_as_its_slower_part(found, hosts, together, bandwidth):
    assert cards_together(found, hosts) == together
    assert link_seconds(found, CARD, hosts) == pytest.approx(found.sent / bandwidth)


def test_a_network_that_is_faster_than_the_links_does_not_speed_them_up():
    found = ring("all-reduce", ALL)
    assert link_seconds(found, replace(CARD, network_gbps=5), TOGETHER) == pytest.approx(found.sent / 10e9)


def test_in_an_all_to_all_what_leaves_the_host_goes_beside_what_stays():
    found = ring("all-to-all", ALL)
    # Of seven parts that a card sends, four leave its host.
    assert link_seconds(found, CARD, TOGETHER) == pytest.approx(found.sent * 4 / 7 / 1e9)
    assert link_seconds(found, replace(CARD, network_gbps=100), TOGETHER) == pytest.approx(found.sent * 3 / 7 / 10e9)
    assert link_seconds(found, TPU, ()) == pytest.approx(found.sent / 10e9)
    assert link_seconds(found, replace(TPU, link_gbps=None), ()) is None
