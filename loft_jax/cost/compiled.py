"""A round's bill: what it sends as declared, and what its compiled programs hold, compute and send.

The one place where a round is billed: for the tables of `cost`, the plans of `plan`, `train --dry_run`, and the bytes
that a run counts in its metrics.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import jax
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.cost.hlo import Collective, collectives
from loft_jax.cost.memory import PeakMemory, data_bytes
from loft_jax.data import AnyDataset, Facts
from loft_jax.loft import NO_TRAFFIC, Method, RoundProgram, State, Traffic, initial_state, make_images
from loft_jax.methods import make_method
from loft_jax.models import Network

# Told what is compiled next: (name, how many have been, how many there are).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Program:
    """What a device does in one run of a program, as its compiler counts it.

    Attributes:
      runs: in a round.
      flops: operations.
      accessed: bytes read and written.
      collectives: that the program holds.
      sent: bytes to other devices, in collectives and beside them.
      stage: of the pipeline that it belongs to, from 0; None for a program of every device.
      ticks: its time with those in which the pipeline fills and drains, over its own.
      declared: what its collectives move, as the model's declaration says.
      arguments, results, temporary, aliased, code: bytes, as the compiler plans them; results that take an argument's
        place are aliased.
      resident: bytes beside images that stay on its device while it runs, its arguments among them.
      grows: whether it takes more memory for a larger batch.
    """

    name: str
    runs: int
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

    @property
    def needed(self) -> int:
        """Bytes beside arguments: temporary space, and results that take no argument's place."""
        return self.temporary + self.results - self.aliased

    @classmethod
    def of(cls, name: str, program: RoundProgram, compiled: jax.stages.Compiled, resident: int = 0) -> Self:
        """Read what the compiler says of a program."""
        cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        assert memory is not None, "this backend does not say what memory a program takes"
        found = tuple(collectives(compiled))
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
        )


@dataclass(frozen=True)
class CompiledRound:
    """A round whose programs are compiled.

    Attributes:
      programs: of a round; in a program that loops over steps every step is counted.
      data: bytes of images and labels on each device.
      devices: of the mesh.
    """

    programs: tuple[Program, ...]
    data: int
    devices: int

    @property
    def memory(self) -> PeakMemory:
        """Memory of the device that holds most, at the worst moment of a round."""
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
    """A round of a method on a mesh, to be counted as declared, or compiled.

    Attributes:
      full: the full state, or its shapes.
      data: bytes of images and labels on each device.
    """

    method: Method
    mesh: Mesh
    full: State
    data: int

    @classmethod
    def of(cls, config: Config, model: Network, facts: Facts, dataset: AnyDataset, mesh: Mesh) -> Self:
        """Make the bill of what a config would train; nothing is put on a device.

        Args:
          facts: of the config's data set.
          dataset: images that programs can be compiled for: the config's, or a stand-in.
        """
        images = make_images(config, dataset, mesh, shapes_only=True)
        method = make_method(config, model, dataset, mesh, images)
        full = jax.eval_shape(lambda: initial_state(model, config, facts.image_shape))
        return cls(method, mesh, full, data_bytes(facts, config, mesh.size))

    @cached_property
    def programs(self) -> dict[str, RoundProgram]:
        """The programs of a round by name."""
        return self.method.programs(self.full)

    @cached_property
    def wire(self) -> float:
        """Bytes that all devices together send in the training of one round, as declared."""
        total = 0.0
        for program in self.programs.values():
            groups = self.mesh.size // program.traffic.devices
            total += program.runs * (groups * program.traffic.wire + program.sent)
        return total

    def compiled(
        self,
        progress: Progress = lambda *_: None,
        refusal: Callable[[str, str], Exception] | None = None,
    ) -> CompiledRound:
        """Compile the programs of a round.

        Args:
          refusal: makes what is raised where the compiler finds no room for a program, from its name and the
            compiler's words; None for the compiler's own error.
        """
        resident, programs = self.method.resident(self.full), []
        for done, (name, program) in enumerate(self.programs.items()):
            progress(name, done, len(self.programs))
            try:
                compiled = Program.of(name, program, program.lower().compile(), resident[name])
                if program.begin is not None:
                    begin = Program.of(name, program, program.begin().compile())
                    compiled = with_all_steps(compiled, begin, program.steps)
            except jax.errors.JaxRuntimeError as error:
                if refusal is None or "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise refusal(name, str(error)) from None
            programs.append(compiled)
        return CompiledRound(tuple(programs), self.data, self.mesh.size)


def with_all_steps(loop: Program, begin: Program, steps: int) -> Program:
    """A loop whose body counts as often as it runs: compilers count it once, with what comes before the first step."""
    flops, accessed = (
        before + steps * (once - before)
        for before, once in ((begin.flops, loop.flops), (begin.accessed, loop.accessed))
    )
    return replace(loop, flops=flops, accessed=accessed)


def wire_bytes(programs: Mapping[str, RoundProgram], devices: int) -> float:
    """Bytes that so many devices together send when each program runs as often as it says; compiles them."""
    found = [(program.runs, collectives(program.lower().compile())) for program in programs.values()]
    return devices * sum(runs * collective.sent for runs, some in found for collective in some)


def nbytes(tree: Any) -> int:
    """Count the bytes of arrays or their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
