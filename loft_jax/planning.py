"""A round compiled for devices that need not be there: memory, bytes, operations, and a time that follows from them.

Nothing runs on the devices: arguments are shapes that lie on the mesh as a run's arrays do.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from loft_jax.collectives import Collective, collectives
from loft_jax.config import Config, largest_divisor
from loft_jax.data.dataset import Dataset
from loft_jax.data.facts import Facts
from loft_jax.errors import UserError
from loft_jax.experiment import check_model, configure_jax
from loft_jax.gpipe import GPipe
from loft_jax.ledger import step_traffic, sync_traffic
from loft_jax.memory import PeakMemory, gpipe_memory, nbytes, round_memory
from loft_jax.mesh import DATA, REPLICATED, WORKER, make_mesh, shapes_on
from loft_jax.models import create_model
from loft_jax.round import Round
from loft_jax.sizes import parameter_count
from loft_jax.state import exchanges, initial_state
from loft_jax.topology import GB, Chip, Topology

Tree = dict[str, Any]
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
      sent: bytes to other devices.
    """

    name: str
    runs: int
    flops: float
    accessed: float
    collectives: tuple[Collective, ...] = ()
    sent: float = 0.0

    def seconds(self, chip: Chip) -> float:
        """Of one run at the chip's peak: that of its arithmetic or of its memory, whichever takes longer."""
        return max(self.flops / (chip.tflops * 1e12), self.accessed / (chip.memory_gbps * GB))


@dataclass(frozen=True)
class Plan:
    """A round of a config on a mesh of devices.

    Attributes:
      used: devices in the mesh; the others are idle.
      programs: of a round. "loop" is all local steps of a worker.
      declared: (program, kind of collective, devices) -> bytes that a device hands in in a round, as the model's
        declaration says; the norm statistics of a data-parallel step are not in it.
      memory: of the device that holds most, in training.
      code: bytes of the programs themselves, where they lie in the device's memory.
      full_state: bytes that every device holds beside its part while the full CNN is assembled, between rounds.
      pipeline: micro-batches and stages under GPipe, else None.
    """

    config: Config
    topology: Topology
    mesh: Mapping[str, int]
    programs: tuple[Program, ...]
    declared: Mapping[tuple[str, str, int], int]
    memory: PeakMemory
    code: int
    full_state: int
    pipeline: tuple[int, int] | None = None

    @property
    def used(self) -> int:
        """Devices of the mesh."""
        return self.mesh[WORKER] * self.mesh[DATA]

    @property
    def peak(self) -> int:
        """Bytes of a device's memory that training takes."""
        return self.memory.total + self.code

    @property
    def flops(self) -> float:
        """Operations of a round, all devices together (the mesh's, each as the one that has most)."""
        each = sum(program.runs * program.flops for program in self.programs)
        return each if self.pipeline else self.used * each

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a round; under GPipe the stage that sends most."""
        sizes = [program.runs * program.sent for program in self.programs]
        return max(sizes) if self.pipeline else sum(sizes)

    def compute_seconds(self, chip: Chip) -> float | None:
        """Of a round at the chip's peaks, nothing at the same time on one device; None where peaks are not stated."""
        if chip.tflops is None or chip.memory_gbps is None:
            return None
        if self.pipeline is None:
            return sum(program.runs * program.seconds(chip) for program in self.programs)
        # The slowest stage's clock, with the ticks in which the pipeline fills and drains.
        microbatches, stages = self.pipeline
        by_stage = [0.0] * stages
        for program in self.programs:
            ticks = 1 if program.name.endswith("update") else (microbatches + stages - 1) / microbatches
            by_stage[GPipe.stage_of(program.name)] += ticks * program.runs * program.seconds(chip)
        return max(by_stage)

    def sending_seconds(self, chip: Chip) -> float | None:
        """Of what a device sends in a round, at the full bandwidth of its links; None where that is not stated."""
        if not self.sent:
            return 0.0
        return None if chip.link_gbps is None else self.sent / (chip.link_gbps * GB)


def prepare(config: Config, topology: Topology) -> None:
    """Process-wide settings, before JAX sees a device: everything that is run here runs on the CPU."""
    devices = {"cpu_devices": topology.size if topology.is_cpu else 1}
    configure_jax(config.model_copy(update={"mesh": config.mesh.model_copy(update=devices)}))
    jax.config.update("jax_platforms", "cpu")


def make_plan(
    config: Config,
    topology: Topology,
    facts: Facts,
    dataset: Dataset,
    progress: Progress = lambda *_: None,
    *,
    model: nn.Module | None = None,
) -> Plan:
    """Compile the programs of a round of the config for the topology.

    Args:
      facts, dataset: of `facts_to_compile_for`.
      model: instead of the config's own.

    Raises:
      UserError: config, model and devices do not go together, or the compiler says that a program does not fit.
    """
    model = model or create_model(
        config.model.name,
        facts.num_classes,
        width=config.model.width,
        stem=config.model.stem,
        dtype=jnp.dtype(config.precision),
    )
    check_model(model, config)
    if config.data.split == "disjoint" and facts.examples < config.loft.workers:
        raise UserError(f"loft.workers={config.loft.workers}: {facts.examples} images are too few for disjoint parts")
    mesh = make_mesh(config, topology.devices())
    check_whole_slice(config, topology, mesh.size)
    planned = _of_round if config.gpipe.stages is None else _of_gpipe
    return planned(config, topology, mesh, model, dataset, facts, progress)


def check_whole_slice(config: Config, topology: Topology, used: int) -> None:
    """Raise UserError if some chips of a TPU slice would be idle: libtpu aborts on some parts of a slice."""
    if topology.is_cpu or used == topology.size:
        return
    lanes, batch = config.gpipe.stages or config.loft.workers, config.data.batch_size
    data = topology.size // lanes
    if config.gpipe.stages is None and lanes * data == topology.size and batch % data == 0:
        advice = f"mesh.data={data}"
    else:
        most = largest_divisor(topology.size, lanes)
        advice = (
            f"gpipe.stages={most}" if config.gpipe.stages else f"loft.workers={most}, mesh.data={topology.size // most}"
        )
    raise UserError(
        f"--topology {topology.name}: the run would use {used} of its {topology.size} chips, and plans are made for "
        f"whole slices; try {advice}, or a smaller slice"
    )


def _of_round(
    config: Config,
    topology: Topology,
    mesh: Mesh,
    model: nn.Module,
    dataset: Dataset,
    facts: Facts,
    progress: Progress,
) -> Plan:
    round_ = Round(config, model, dataset, mesh)
    full = jax.eval_shape(lambda: initial_state(model, config, facts.image_shape))
    state = lying(jax.eval_shape(round_.place, full), round_.meeting.state_spec, mesh)
    arguments = (state, *training_data(dataset, mesh))
    lowered = round_.lowered(*arguments)
    loops = "loop" in lowered
    if loops:
        lowered |= {"begin": Round(config, model, dataset, mesh, fused=False).lowered(*arguments)["begin"]}
    compiled = compile_all(lowered, config, topology, progress)
    programs = {name: _program(name, round_.runs[name], program) for name, program in compiled.items()}
    if loops:
        del compiled["begin"]
        programs["loop"] = _with_all_steps(programs["loop"], programs.pop("begin"), config.loft.local_steps)
    declared = {"sync": (1, sync_traffic(full, round_.groups, config, mesh.shape[WORKER]))}
    if mesh.shape[DATA] > 1:
        parameters = parameter_count(round_.step.model.clone(norm_axis=None), facts.image_shape)
        steps = round_.slots * config.loft.local_steps
        declared["loop" if loops else "step"] = (steps, step_traffic(parameters, mesh.shape[DATA]))
    return Plan(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        programs=tuple(programs.values()),
        declared={
            (name, kind, traffic.devices): times * payload
            for name, (times, traffic) in declared.items()
            for kind, payload in traffic.payloads.items()
        },
        memory=round_memory(compiled, round_, state, mesh, facts.device_bytes(mesh.size)),
        code=sum(program.memory_analysis().generated_code_size_in_bytes for program in compiled.values()),
        full_state=nbytes(full) if exchanges(config, round_.groups) else 0,
    )


def _of_gpipe(
    config: Config,
    topology: Topology,
    mesh: Mesh,
    model: nn.Module,
    dataset: Dataset,
    facts: Facts,
    progress: Progress,
) -> Plan:
    pipeline = GPipe(config, model, dataset, mesh)
    compiled = compile_all(pipeline.lowered(), config, topology, progress)
    # A stage sends on what leaves it, and back the gradient of what came in: here all with its way back.
    ends = [0, *(nbytes(x) for x in pipeline.inputs[1:]), 0]
    sent = [before + behind for before, behind in pairwise(ends)]
    programs = []
    for name, program in compiled.items():
        runs = config.loft.local_steps * (1 if name.endswith("update") else pipeline.microbatches)
        programs.append(_program(name, runs, program, sent[pipeline.stage_of(name)] if "backward" in name else 0))
    full = jax.eval_shape(lambda: initial_state(model, config, facts.image_shape))
    return Plan(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        programs=tuple(programs),
        declared={},
        memory=gpipe_memory(compiled, pipeline, facts.device_bytes(mesh.size)),
        code=max(program.memory_analysis().generated_code_size_in_bytes for program in compiled.values()),
        full_state=nbytes(full),
        pipeline=(pipeline.microbatches, len(pipeline.bounds)),
    )


def training_data(dataset: Dataset, mesh: Mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What a round is given beside its state: the training set, on every device."""
    return tuple(
        lying(jax.ShapeDtypeStruct(array.shape, array.dtype), REPLICATED, mesh)
        for array in (dataset.train_images, dataset.train_labels)
    )


def lying(tree: Any, specs: PartitionSpec | Mapping[str, PartitionSpec], mesh: Mesh) -> Any:
    """The shapes of a tree, where they lie on the mesh."""
    if isinstance(specs, Mapping):
        return {name: lying(tree[name], spec, mesh) for name, spec in specs.items()}
    return shapes_on(NamedSharding(mesh, specs), tree)


def compile_all(
    lowered: Mapping[str, jax.stages.Lowered], config: Config, topology: Topology, progress: Progress
) -> dict[str, jax.stages.Compiled]:
    """Raises UserError if the compiler says that a program does not fit."""
    compiled = {}
    for done, (name, program) in enumerate(lowered.items()):
        progress(name, done, len(lowered))
        try:
            compiled[name] = program.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(_refused_by_compiler(name, str(error), config, topology)) from None
    return compiled


def check_fits(plan: Plan, chip: Chip) -> None:
    """Raise UserError if training takes more memory than the chip has; where none is stated, all fits."""
    if chip.memory_gb is None or plan.peak <= chip.memory_gb * GB:
        return
    left = chip.memory_gb * GB - plan.memory.resident - plan.code
    fixed = (plan.memory.resident + plan.code) / GB
    need = (
        f"{plan.peak / GB:.2f} GB are needed, {fixed:.2f} GB of them for state, data and code, and a chip of "
        f"{plan.topology.name} has {chip.memory_gb:.2f} GB"
    )
    if left <= 0 or plan.memory.name in ("sync", "loop update"):
        raise UserError(f"model.name={plan.config.model.name}: {need}; try a smaller model.width")
    raise UserError(_too_large(plan.config, need, left / plan.memory.program))


def _refused_by_compiler(name: str, error: str, config: Config, topology: Topology) -> str:
    """What to say of a program that does not fit, from the compiler's own words."""
    sizes = [float(number) * 1024 ** "KMGT".index(unit) for number, unit in re.findall(r"([\d.]+)([KMGT])\b", error)]
    need = f"the compiler finds no room for the program {name!r} on a chip of {topology.name}"
    if len(sizes) >= 2 and sizes[0] > sizes[1]:
        need += f": {sizes[0] * 1024 / GB:.2f} GB are needed, and {sizes[1] * 1024 / GB:.2f} GB are there"
        return _too_large(config, need, sizes[1] / sizes[0])
    return _too_large(config, need, 0.5)


def _too_large(config: Config, need: str, share: float) -> str:
    """`share`: of what a program takes, how much there is room for."""
    data, batch = config.mesh.data, config.data.batch_size
    least = data * (config.gpipe.microbatches if config.gpipe.stages else 1)
    fitting = int(batch * share) // least * least
    options = [f"data.batch_size={fitting}"] if 0 < fitting < batch else []
    if config.gpipe.stages is None:
        options.append(f"mesh.data={2 * data}")
    else:
        options.append(f"gpipe.microbatches={2 * config.gpipe.microbatches}")
    return f"data.batch_size={batch}: {need}; try about {', or '.join(options)}"


def _program(name: str, runs: int, program: jax.stages.Compiled, sent: float = 0.0) -> Program:
    cost, found = program.cost_analysis() or {}, tuple(collectives(program))
    sent += sum(collective.sent for collective in found)
    return Program(name, runs, cost.get("flops", 0.0), cost.get("bytes accessed", 0.0), found, sent)


def _with_all_steps(loop: Program, begin: Program, steps: int) -> Program:
    """A loop whose body counts as often as it runs: compilers count it once, with what comes before the first step."""
    flops, accessed = (
        before + steps * (once - before)
        for before, once in ((begin.flops, loop.flops), (begin.accessed, loop.accessed))
    )
    return replace(loop, flops=flops, accessed=accessed)
