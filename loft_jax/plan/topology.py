"""Hardware to plan for: its name, the figures that its vendor states, and its devices as the compiler needs them.

`v5e:4x4` is a slice of TPU chips, `h100:8x2` are two hosts of eight cards, `cpu:8` are virtual devices. JAX is loaded
only when devices are asked for.
"""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from loft_jax.devices import CHIPS, Chip, Platform
from loft_jax.errors import UserError, did_you_mean, format_value
from loft_jax.plan.cuda import check_plugin, find_devices, prepare_environment

MOST_CPU_DEVICES = 1024
MOST_CARDS, MOST_HOSTS = 8, 128

# The slices that Google offers of chips with two sides; and for chips with three sides, the largest number of chips.
_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_MOST_CHIPS = {"v4": 4096, "v5p": 6144}
# For libtpu on a machine without a TPU: it looks for none and prints nothing. Two plans may be made at the same time.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Topology:
    """Devices of one kind.

    Attributes:
      name: the name as it was given.
      chip: one of them.
      sides: chips along each side of a slice; of GPUs the number of hosts, and of cards of each; for a CPU the number
        of devices.
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of devices."""
        return math.prod(self.sides)

    @property
    def platform(self) -> Platform:
        """JAX's name of the platform."""
        return self.chip.platform

    @property
    def hosts(self) -> int:
        """Number of hosts of GPUs; otherwise 1, because the links of a slice do not end at hosts."""
        return self.sides[0] if self.platform == "cuda" else 1

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """Make the topology from a name such as v5e:4x4, v4:2x2x2, h100:8, h100:8x2 or cpu:8. Raises UserError."""
        kind, _, shape = name.partition(":")
        if kind == "cpu":
            return cls(name, Chip("cpu", platform="cpu"), (_parse_cpu_devices(name, shape),))
        if kind not in CHIPS:
            kinds = [*CHIPS, "cpu"]
            hint = did_you_mean(kind, kinds, "try h100:8, v5e:4x4 or cpu:4")
            raise UserError(
                f"--topology {format_value(name)}: {format_value(kind)!r} is none of {', '.join(kinds)}{hint}"
            )
        parse_sides = _parse_cards if CHIPS[kind].platform == "cuda" else _parse_sides
        return cls(name, CHIPS[kind], parse_sides(name, kind, shape))

    def check_compiler(self) -> None:
        """Raise UserError if the compiler for these devices is missing. Imports no JAX."""
        if self.platform == "cuda":
            check_plugin(self.name)
        if self.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"--topology {self.name}: compiling for TPUs needs libtpu; pip install 'loft_jax[tpu]', or try "
                f"--topology cpu:{min(self.size, MOST_CPU_DEVICES)}"
            )

    def prepare(self) -> None:
        """Set what must be set before JAX looks for devices."""
        if self.platform == "cuda":
            prepare_environment()

    def devices(self) -> list[Any]:
        """Return the devices as JAX objects; except for a CPU they can only be compiled for. Raises UserError."""
        self.check_compiler()
        if self.platform == "cuda":
            return find_devices(self.name, self.chip.name, *self.sides)
        import jax

        if self.platform == "cpu":
            return jax.devices("cpu")[: self.size]
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
        from jax.experimental import topologies

        # A device is a chip: both cores of a v4 are one. Hosts have at least four chips, unless the slice has only one.
        options: dict[str, Any] = {"chip_config_name": "megacore"} if self.chip.name == "v4" else {}
        options |= {"chips_per_host_bounds": (1, 1, 1)} if self.size == 1 else {}
        try:
            return list(topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options).devices)
        except jax.errors.JaxRuntimeError as error:
            sides = "x".join(str(2 * math.ceil(side / 2)) if i < 2 else str(side) for i, side in enumerate(self.sides))
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--topology {self.name}: libtpu has no such slice ({reason}); try {self.chip.name}:{sides}"
            ) from None


def _parse_cpu_devices(name: str, shape: str) -> int:
    """Return a number of virtual devices. Raises UserError."""
    if not re.fullmatch(r"[0-9]{1,6}", shape) or not 1 <= int(shape) <= MOST_CPU_DEVICES:
        nearest = min(max(int(shape), 1), MOST_CPU_DEVICES) if shape.isascii() and shape.isdecimal() else 4
        raise UserError(
            f"--topology {format_value(name)}: must be cpu:N, 1 to {MOST_CPU_DEVICES} devices; try cpu:{nearest}"
        )
    return int(shape)


def _parse_cards(name: str, kind: str, shape: str) -> tuple[int, int]:
    """Return the number of hosts, and of cards of each, from N or NxHOSTS. Raises UserError."""
    found = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", shape)
    cards, hosts = (int(found[1]), int(found[2] or 1)) if found else (MOST_CARDS, 1)
    if found and 1 <= cards <= MOST_CARDS and 1 <= hosts <= MOST_HOSTS:
        return hosts, cards
    if hosts == 1 and cards > MOST_CARDS:
        hosts = math.ceil(cards / MOST_CARDS)
    cards, hosts = min(max(cards, 1), MOST_CARDS), min(max(hosts, 1), MOST_HOSTS)
    raise UserError(
        f"--topology {format_value(name)}: must be {kind}:N, 1 to {MOST_CARDS} cards of one host, or {kind}:NxHOSTS, N "
        f"cards of each of up to {MOST_HOSTS} hosts; try {kind}:{cards}{f'x{hosts}' if hosts > 1 else ''}"
    )


def _parse_sides(name: str, kind: str, shape: str) -> tuple[int, ...]:
    """Return the sides of a slice of TPU chips. Raises UserError."""
    numbers = [int(side) for side in re.findall(r"[0-9]{1,5}", shape)]
    sides = tuple(numbers) if re.fullmatch(r"[0-9]{1,5}(x[0-9]{1,5})*", shape) else ()
    if kind not in _MOST_CHIPS:
        if shape not in _PLANES:
            wanted = math.prod(numbers) if numbers else 16
            nearest = min(_PLANES, key=lambda plane: abs(math.log((math.prod(_numbers(plane))) / max(1, wanted))))
            raise UserError(
                f"--topology {format_value(name)}: slices of {kind} are {', '.join(_PLANES)} chips; "
                f"try {kind}:{nearest}"
            )
        return sides
    most = _MOST_CHIPS[kind]
    if len(sides) != 3 or not all(sides) or math.prod(sides) > most:
        raise UserError(
            f"--topology {format_value(name)}: a slice of {kind} has three sides of chips, at most {most:,} in all; "
            f"try {kind}:2x2x2"
        )
    return sides


def _numbers(shape: str) -> list[int]:
    return [int(side) for side in shape.split("x")]
