"""The time of programs and of what they send, computed from the stated figures of a chip, and what bounds it.

Nothing here is measured. Programs run one after another, and then they send; no program waits.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Self

from loft_jax.cost.compiled import Program
from loft_jax.cost.hlo import Collective
from loft_jax.cost.kernels import Kernel
from loft_jax.devices import GB, Chip

_PRODUCTS = ("convolution", "product")


@dataclass(frozen=True)
class Seconds:
    """Seconds by what bounds them: arithmetic, the chip's memory, starting kernels, or links to other devices."""

    arithmetic: float = 0.0
    memory: float = 0.0
    launches: float = 0.0
    links: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.by_bound.values())

    @property
    def by_bound(self) -> dict[str, float]:
        """The seconds by the name of the bound."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def bound(self) -> str:
        """The name of the bound that takes longest."""
        return max(self.by_bound, key=self.by_bound.__getitem__)

    def __add__(self, other: Self) -> Self:
        return type(self)(
            *(one + more for one, more in zip(self.by_bound.values(), other.by_bound.values(), strict=True))
        )

    def times(self, number: float) -> Self:
        """Return the seconds of this number of repetitions."""
        return type(self)(*(number * seconds for seconds in self.by_bound.values()))


def program_seconds(program: Program, chip: Chip, precision: str) -> Seconds | None:
    """Compute the time of one run of a program, without what it sends; None if the chip's figures are not known.

    If its kernels are known, each takes the longer of its bytes at the bandwidth of the memory and of the time to start
    it; and convolutions and products together take at least their FLOPs at the peak. Otherwise the program takes the
    longer of FLOPs and bytes.
    """
    peak = chip.peak_tflops(precision)
    if peak is None or chip.memory_gbps is None:
        return None
    arithmetic, bandwidth = program.flops / (peak * 1e12), chip.memory_gbps * GB
    if chip.kernel_us is None or not program.kernels:
        memory = program.accessed / bandwidth
        return Seconds(arithmetic=arithmetic) if arithmetic > memory else Seconds(memory=memory)
    own = [kernel for kernel in program.kernels if kernel.kind != "collective"]
    products, others = (
        kernel_seconds([k for k in own if (k.kind in _PRODUCTS) == wanted], bandwidth, chip.kernel_us)
        for wanted in (True, False)
    )
    return others + (products if products.total > arithmetic else Seconds(arithmetic=arithmetic))


def kernel_seconds(kernels: Iterable[Kernel], bandwidth: float, start_us: float) -> Seconds:
    """Compute the time of kernels that only move bytes: each at this bandwidth (bytes/s), or as long as its start."""
    memory = launches = 0.0
    for kernel in kernels:
        moving, starting = kernel.each / bandwidth, start_us / 1e6
        if moving > starting:
            memory += kernel.times * moving
        else:
            launches += kernel.times * starting
    return Seconds(memory=memory, launches=launches)


def link_seconds(found: Collective, chip: Chip, hosts: Sequence[int] = ()) -> float | None:
    """Compute the time of a collective in one run of its program; None if the chip's figures are not known.

    Between hosts, a ring is as slow as its slower part: the links of a card, or the network of the cards of the group
    that one host has, which share it. In an all-to-all, what stays in the host and what leaves it go at the same time.

    Args:
      hosts: the host of each device of the mesh; empty if all links are alike.
    """
    if chip.link_gbps is None:
        return None
    link = chip.link_gbps * GB
    share = cards_together(found, hosts)
    if share is None or chip.network_gbps is None:
        return found.sent / link
    network = chip.network_gbps * GB
    if found.kind == "collective-permute":
        return found.sent / network
    if found.kind == "all-to-all":
        leaving = found.sent * (found.devices - share) / (found.devices - 1)
        return max(leaving / network, (found.sent - leaving) / link)
    return found.sent / min(link, share * network)


def cards_together(found: Collective, hosts: Sequence[int]) -> int | None:
    """Count the devices of a collective that a host has, on the host with fewest; None if no group leaves its host."""
    crossing = [Counter(hosts[device] for device in group) for group in found.groups] if hosts else []
    return min((min(group.values()) for group in crossing if len(group) > 1), default=None)
