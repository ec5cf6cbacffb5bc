"""A plan: programs, bytes, memory, the time of a round computed from peak figures, and whether it fits."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from loft_jax.config import Config
from loft_jax.cost import (
    CompiledRound,
    Kernel,
    PeakMemory,
    Program,
    Seconds,
    kernels_of_steps,
    link_seconds,
    program_seconds,
)
from loft_jax.devices import DATA, GB, WORKER, Chip
from loft_jax.errors import UserError
from loft_jax.plan.topology import Topology


@dataclass(frozen=True)
class Plan:
    """The plan of a round of a config on a mesh of devices.

    Attributes:
      compiled: the programs of the round. "loop" is all local steps of a worker.
      full_state: bytes that every device holds in addition to its part while the full CNN is assembled, between rounds.
      pipeline: numbers of micro-batches and of stages under GPipe, otherwise None.
      hosts: the host of each device of the mesh; empty if links between hosts are as fast as those within one.
    """

    config: Config
    topology: Topology
    mesh: Mapping[str, int]
    compiled: CompiledRound
    full_state: int
    pipeline: tuple[int, int] | None = None
    hosts: tuple[int, ...] = ()

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs of the round."""
        return self.compiled.programs

    @property
    def memory(self) -> PeakMemory:
        """Memory of the device that holds most, in training."""
        return self.compiled.memory

    @property
    def declared(self) -> dict[tuple[str, str, int], float]:
        """Map (program, kind of collective, devices) to the bytes that a device contributes in a round, as declared.

        The norm statistics of a data-parallel step are not declared.
        """
        return {
            (program.name, kind, program.declared.devices): program.runs * payload
            for program in self.programs
            for kind, payload in program.declared.payloads.items()
        }

    @property
    def used(self) -> int:
        """Devices of the mesh."""
        return self.mesh[WORKER] * self.mesh[DATA]

    @property
    def peak(self) -> int:
        """Bytes of memory that training takes on a device."""
        return self.memory.total + self.compiled.code

    @property
    def flops(self) -> float:
        """Operations of a round on all devices of the mesh together, each counted as the device that has most."""
        each = sum(program.runs * program.flops for program in self.programs)
        return each if self.pipeline else self.used * each

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a round; under GPipe the stage that sends most."""
        sizes = [program.runs * program.sent for program in self.programs]
        return max(sizes) if self.pipeline else sum(sizes)

    def step_kernels(self, program: Program) -> list[tuple[Kernel, float]]:
        """Return the kernels of a program that run in a local step of a worker, and how often each runs in it."""
        if program.stage is not None:
            each = program.runs / self.config.loft.local_steps
        else:
            # "loop" is all steps of a worker, "step" is one of them; the others run between the steps.
            each = {"loop": 1 / program.steps, "step": 1.0}.get(program.name, 0.0)
        return [(kernel, kernel.times * each) for kernel in kernels_of_steps(program.kernels)] if each else []

    def compute(self, chip: Chip) -> Seconds | None:
        """Compute the time of a round's programs, under GPipe of the slowest stage; None if no figures are known."""
        by_stage: dict[int | None, Seconds] = defaultdict(Seconds)
        for program in self.programs:
            if (each := program_seconds(program, chip, self.config.precision)) is None:
                return None
            by_stage[program.stage] += each.times(program.ticks * program.runs)
        return max(by_stage.values(), key=lambda seconds: seconds.total)

    def sending_seconds(self, chip: Chip) -> float | None:
        """Compute the seconds that a device takes to send a round's bytes; None if the bandwidth is not known."""
        if not self.sent:
            return 0.0
        if chip.link_gbps is None:
            return None
        each = [program.runs * self._program_sending_seconds(program, chip) for program in self.programs]
        return max(each) if self.pipeline else sum(each)

    def _program_sending_seconds(self, program: Program, chip: Chip) -> float:
        outside = program.sent - sum(found.sent for found in program.collectives)
        seconds = outside / ((chip.link_gbps or 0.0) * GB) if outside else 0.0
        return seconds + sum(link_seconds(found, chip, self.hosts) or 0.0 for found in program.collectives)


def check_fits(plan: Plan, chip: Chip) -> None:
    """Raise UserError if training takes more memory than the chip has; without a stated memory everything fits."""
    if chip.memory_gb is None or plan.peak <= chip.memory_gb * GB:
        return
    fixed = plan.memory.resident + plan.compiled.code
    need = (
        f"{plan.peak / GB:.4g} GB are needed, {fixed / GB:.4g} GB of them for state, data and code, but a device of "
        f"{plan.topology.name} has {chip.memory_gb:.4g} GB"
    )
    share = (chip.memory_gb * GB - fixed) / plan.memory.program if plan.memory.grows else 0
    raise make_refusal(plan.config, need, share)


def make_compiler_refusal(config: Config, topology: Topology, name: str, error: str) -> UserError:
    """Make the error for a program for which the compiler finds no room, from the compiler's message."""
    need = f"the compiler finds no room for the program {name!r} on a chip of {topology.name}"
    sizes = [float(number) * 1024 ** " KMGT".index(unit) for number, unit in re.findall(r"([\d.]+)([KMGT])\b", error)]
    if len(sizes) < 2 or sizes[0] <= sizes[1]:
        return make_refusal(config, need, 0.5)
    need += f": {sizes[0] / GB:.4g} GB are needed, but only {sizes[1] / GB:.4g} GB are available"
    return make_refusal(config, need, sizes[1] / sizes[0])


def make_refusal(config: Config, need: str, share: float) -> UserError:
    """Make the error if there is room for only a share of what a batch takes; 0 if a smaller batch does not help."""
    batch, data, microbatches = config.data.batch_size, config.mesh.data, config.gpipe.microbatches
    pipeline = config.gpipe.stages is not None
    divisor = microbatches if pipeline else data
    fitting = int(batch * share) // divisor * divisor
    options = [f"data.batch_size={fitting}"] if 0 < fitting < batch else []
    if share > 0 and batch % (2 * divisor) == 0:
        options.append(f"gpipe.microbatches={2 * divisor}" if pipeline else f"mesh.data={2 * divisor} on more devices")
    if not options:
        return UserError(f"model.name={config.model.name}: {need}; try a smaller model.width")
    return UserError(f"data.batch_size={batch}: {need}; try about {', or '.join(options)}")
