"""The bill of a round: what it sends as declared, and what its compiled programs hold, compute and send.

All bills of a round are made here: for the tables of `cost`, the plans of `plan`, `train --dry_run`, and the bytes that
a run counts in its metrics.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import jax
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.cost.hlo import Collective, collectives, find_collectives, text_of
from loft_jax.cost.kernels import Kernel, find_kernels, sum_kernels
from loft_jax.cost.memory import PeakMemory, data_bytes
from loft_jax.cost.text import read_module
from loft_jax.data import AnyDataset, Facts
from loft_jax.loft import NO_TRAFFIC, Method, RoundProgram, State, Traffic, initial_state, make_images
from loft_jax.methods import make_method
from loft_jax.models import Network, count_flops

# Is called before each compilation: (name, number of programs compiled so far, number of all programs).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Program:
    """The work of a device in one run of a program, as its compiler counts it.

    Compilers for GPUs count neither what libraries do nor a loop as often as it runs. There `flops` are those of the
    traced program (`count_flops`), and `accessed` are the bytes of its kernels.

    Attributes:
      runs: runs in a round.
      flops: operations.
      accessed: bytes read and written.
      collectives: the collectives in the program.
      kernels: what the device starts; empty if it was not read.
      steps: local steps in one run, if the program loops over them.
      sent: bytes sent to other devices, in collectives and outside them.
      stage: pipeline stage that runs it, counted from 0; None for a program of every device.
      ticks: its time including the ticks in which the pipeline fills and drains, divided by its own time.
      declared: what its collectives move, according to the model's declaration.
      arguments, results, temporary, aliased, code: bytes that the compiler reserves; results that take an argument's
        place are aliased.
      resident: bytes, without images, that stay on its device while it runs, its arguments included.
      grows: whether it takes more memory for a larger batch.
    """

    name: str
    runs: float
    flops: float
    accessed: float
    collectives: tuple[Collective, ...] = ()
    sent: float = 0.0
    stage: int | None = None
    ticks: float = 1.0
    declared: Traffic = NO_TRAFFIC
    arguments: int = 0
    results: int = 0
    temporary: int = 0
    aliased: int = 0
    code: int = 0
    resident: int = 0
    grows: bool = True
    kernels: tuple[Kernel, ...] = ()
    steps: int = 1

    @property
    def needed(self) -> int:
        """Bytes that it needs besides its arguments: temporary space, and results that take no argument's place."""
        return self.temporary + self.results - self.aliased

    @classmethod
    def from_compiled(
        cls,
        name: str,
        program: RoundProgram,
        compiled: jax.stages.Compiled,
        resident: int = 0,
        *,
        kernels: bool = False,
    ) -> Self:
        """Read what the compiler says about a program; its kernels only if asked for."""
        cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        assert memory is not None, "this backend does not say how much memory a program takes"
        module = read_module(text_of(compiled))
        found = tuple(find_collectives(module))
        return cls(
            name=name,
            runs=program.runs,
            flops=cost.get("flops", 0.0),
            accessed=cost.get("bytes accessed", 0.0),
            collectives=found,
            sent=program.sent + sum(collective.sent for collective in found),
            stage=program.stage,
            ticks=program.ticks,
            declared=program.traffic,
            arguments=memory.argument_size_in_bytes,
            results=memory.output_size_in_bytes,
            temporary=memory.temp_size_in_bytes,
            aliased=memory.alias_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
            resident=resident,
            grows=program.grows,
            kernels=tuple(find_kernels(module)) if kernels else (),
            steps=program.steps,
        )


@dataclass(frozen=True)
class CompiledRound:
    """A round whose programs are compiled.

    Attributes:
      programs: programs of the round; in a program that loops over steps every step is counted.
      data: bytes of images and labels on each device.
      devices: number of devices of the mesh.
    """

    programs: tuple[Program, ...]
    data: int
    devices: int

    @property
    def memory(self) -> PeakMemory:
        """Memory of the device that holds most, at the moment of a round when it holds most."""
        peaks = [PeakMemory(self.data + p.resident, p.needed, p.name, p.grows) for p in self.programs]
        return max(peaks, key=lambda peak: peak.total)

    @property
    def code(self) -> int:
        """Bytes of the programs themselves, on the device that has most of them."""
        by_stage: dict[int | None, int] = {}
        for program in self.programs:
            by_stage[program.stage] = by_stage.get(program.stage, 0) + program.code
        return max(by_stage.values())

    @property
    def wire(self) -> float:
        """Bytes that all devices together send in the collectives of one round."""
        return self.devices * sum(p.runs * found.sent for p in self.programs for found in p.collectives)


@dataclass(frozen=True)
class RoundBill:
    """The bill of a round of a method on a mesh, from the declaration or from compiled programs.

    Attributes:
      full: the full state, or its shapes.
      data: bytes of images and labels on each device.
    """

    method: Method
    mesh: Mesh
    full: State
    data: int

    @classmethod
    def from_config(cls, config: Config, model: Network, facts: Facts, dataset: AnyDataset, mesh: Mesh) -> Self:
        """Make the bill of a config; nothing is put on a device.

        Args:
          facts: facts of the config's data set.
          dataset: images for which programs can be compiled: the config's, or a stand-in.
        """
        images = make_images(config, dataset, mesh, shapes_only=True)
        return cls.from_method(make_method(config, model, dataset, mesh, images), config, model, facts, mesh)

    @classmethod
    def from_method(cls, method: Method, config: Config, model: Network, facts: Facts, mesh: Mesh) -> Self:
        """Make the bill of a method that is made already, from the same arguments as `from_config`."""
        full = jax.eval_shape(lambda: initial_state(model, config, facts.image_shape))
        return cls(method, mesh, full, data_bytes(facts, config, mesh.size))

    @cached_property
    def programs(self) -> dict[str, RoundProgram]:
        """Programs of a round by name."""
        return self.method.programs(self.full)

    @cached_property
    def wire(self) -> float:
        """Bytes that all devices together send in the training of one round, as declared; the mean over rounds."""
        return sum(program.runs * self._sent(program) for program in self.programs.values())

    def wire_in(self, round_number: int) -> float:
        """Count what all devices together send in this round, counted from 0."""
        runs = [
            (program.runs if program.due is None else program.due(round_number), program)
            for program in self.programs.values()
        ]
        return sum(number * self._sent(program) for number, program in runs)

    @property
    def mean_sync(self) -> Traffic:
        """What the collectives of a sync move, in the mean over rounds."""
        payloads: dict[str, float] = {}
        syncs = [program for program in self.programs.values() if program.due is not None]
        for program in syncs:
            for kind, payload in program.traffic.payloads.items():
                payloads[kind] = payloads.get(kind, 0) + program.runs * payload
        return Traffic(payloads, max(program.traffic.devices for program in syncs))

    def _sent(self, program: RoundProgram) -> float:
        """Count what all devices together send in one run of a program."""
        return self.mesh.size // program.traffic.devices * program.traffic.wire + program.sent

    def compiled(
        self,
        progress: Progress = lambda *_: None,
        refusal: Callable[[str, str], Exception] | None = None,
        *,
        kernels: bool = False,
    ) -> CompiledRound:
        """Compile the programs of a round.

        Args:
          progress: is called before each compilation.
          refusal: makes the error to raise if the compiler finds no room for a program, from the program's name and
            the compiler's message; None for the compiler's own error.
          kernels: whether to read the kernels of the programs; on GPUs they are always read.
        """
        resident, programs = self.method.resident(self.full), []
        for done, (name, program) in enumerate(self.programs.items()):
            progress(name, done, len(self.programs))
            try:
                programs.append(self._compile(name, program, resident[name], kernels))
            except jax.errors.JaxRuntimeError as error:
                if refusal is None or "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise refusal(name, str(error)) from None
        return CompiledRound(tuple(programs), self.data, self.mesh.size)

    def _compile(self, name: str, program: RoundProgram, resident: int, kernels: bool) -> Program:
        on_gpu = self.mesh.devices.flat[0].platform == "gpu"
        traced = program.trace()
        compiled = traced.lower().compile()
        found = Program.from_compiled(name, program, compiled, resident, kernels=kernels or on_gpu)
        if on_gpu:
            return replace(found, flops=count_flops(traced), accessed=sum_kernels(found.kernels)[1])
        if program.begin is None:
            return found
        begin = Program.from_compiled(name, program, program.begin().lower().compile())
        return count_all_steps(found, begin, program.steps)


def count_all_steps(loop: Program, begin: Program, steps: int) -> Program:
    """Return a loop whose body counts as often as it runs: compilers count once the body and what is before it."""
    flops, accessed = (
        before + steps * (once - before)
        for before, once in ((begin.flops, loop.flops), (begin.accessed, loop.accessed))
    )
    return replace(loop, flops=flops, accessed=accessed)


def wire_bytes(programs: Mapping[str, RoundProgram], devices: int) -> float:
    """Count the bytes that all devices together send when each program does its runs; compiles the programs."""
    read = [(program.runs, collectives(program.lower().compile())) for program in programs.values()]
    return devices * sum(runs * collective.sent for runs, found in read for collective in found)
