"""A round compiled for devices that need not be there: memory, bytes, operations, and a time that follows from them.

Nothing runs on the devices: arguments are shapes that lie on the mesh as a run's arrays do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from loft_jax.config import Config, largest_divisor
from loft_jax.cost import collectives, data_bytes, gpipe_memory, nbytes, round_memory
from loft_jax.data import AnyDataset, Facts
from loft_jax.devices import DATA, WORKER, configure_jax, make_mesh, shapes_on
from loft_jax.errors import UserError
from loft_jax.gpipe import GPipe
from loft_jax.loft import Round, exchanges, initial_state, step_traffic, sync_traffic, training_shapes
from loft_jax.methods import check_data, check_model
from loft_jax.models import model_of, parameter_count
from loft_jax.plan.plan import Plan, Program, compiler_refusal, with_all_steps
from loft_jax.plan.topology import Topology

Tree = dict[str, Any]
# Told what is compiled next: (name, how many have been, how many there are).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Setting:
    config: Config
    topology: Topology
    mesh: Mesh
    model: nn.Module
    facts: Facts
    dataset: AnyDataset
    progress: Progress

    def full_state(self) -> Tree:
        """Its shapes."""
        return jax.eval_shape(lambda: initial_state(self.model, self.config, self.facts.image_shape))

    def compiled(self, lowered: Mapping[Any, jax.stages.Lowered]) -> dict[Any, jax.stages.Compiled]:
        """By the same names. Raises UserError if the compiler says that a program does not fit."""
        programs = {}
        for done, (name, program) in enumerate(lowered.items()):
            self.progress(str(name), done, len(lowered))
            try:
                programs[name] = program.compile()
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise compiler_refusal(self.config, self.topology, str(name), str(error)) from None
        return programs


def prepare(config: Config, topology: Topology) -> None:
    """Process-wide settings, before JAX sees a device: everything that is run here runs on the CPU."""
    devices = {"cpu_devices": topology.size if topology.is_cpu else 1}
    configure_jax(config.model_copy(update={"mesh": config.mesh.model_copy(update=devices)}))
    jax.config.update("jax_platforms", "cpu")
    # Programs for devices that are not there can be written to the cache, but not read from it.
    jax.config.update("jax_enable_compilation_cache", topology.is_cpu)


def make_plan(
    config: Config,
    topology: Topology,
    facts: Facts,
    dataset: AnyDataset,
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
    model = model or model_of(config, facts.num_classes)
    check_model(model, config)
    check_data(config, facts, config.data.name)
    mesh = make_mesh(config, topology.devices())
    check_whole_slice(config, topology, mesh.size)
    setting = _Setting(config, topology, mesh, model, facts, dataset, progress)
    return _of_round(setting) if config.gpipe.stages is None else _of_gpipe(setting)


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


def _of_round(setting: _Setting) -> Plan:
    config, mesh, facts = setting.config, setting.mesh, setting.facts
    round_ = Round(config, setting.model, setting.dataset, mesh)
    full = setting.full_state()
    state = lying(jax.eval_shape(round_.place, full), round_.meeting.state_spec, mesh)
    arguments = (state, training_shapes(config, setting.dataset, mesh))
    lowered = round_.lowered(*arguments)
    loops = "loop" in lowered
    if loops:
        lowered |= {
            "begin": Round(config, setting.model, setting.dataset, mesh, fused=False).lowered(*arguments)["begin"]
        }
    compiled = setting.compiled(lowered)
    programs = {name: _program(name, round_.runs[name], program) for name, program in compiled.items()}
    if loops:
        del compiled["begin"]
        programs["loop"] = with_all_steps(programs["loop"], programs.pop("begin"), config.loft.local_steps)
    declared = {"sync": (1, sync_traffic(full, round_.groups, config, mesh.shape[WORKER]))}
    if mesh.shape[DATA] > 1:
        parameters = parameter_count(round_.step.model.clone(norm_axis=None), facts.image_shape)
        steps = round_.slots * config.loft.local_steps
        declared["loop" if loops else "step"] = (steps, step_traffic(parameters, mesh.shape[DATA]))
    return Plan(
        config=config,
        topology=setting.topology,
        mesh=dict(mesh.shape),
        programs=tuple(programs.values()),
        declared={
            (name, kind, traffic.devices): times * payload
            for name, (times, traffic) in declared.items()
            for kind, payload in traffic.payloads.items()
        },
        memory=round_memory(compiled, round_, state, mesh, data_bytes(facts, config, mesh.size)),
        code=sum(program.memory_analysis().generated_code_size_in_bytes for program in compiled.values()),
        full_state=nbytes(full) if exchanges(config, round_.groups) else 0,
    )


def _of_gpipe(setting: _Setting) -> Plan:
    config, mesh = setting.config, setting.mesh
    pipeline = GPipe(config, setting.model, setting.dataset, mesh)
    compiled = setting.compiled(pipeline.lowered())
    parts, stages = pipeline.microbatches, len(pipeline.bounds)
    programs, code = [], [0] * stages
    for name, program in compiled.items():
        # All that a stage sends is counted with its way back.
        sent = pipeline.sent_per_microbatch[name.stage] if name.role == "backward" else 0
        ticks = 1 if name.role == "update" else (parts + stages - 1) / parts
        figures = _program(str(name), pipeline.runs[name], program, sent)
        programs.append(replace(figures, stage=name.stage, ticks=ticks))
        code[name.stage] += program.memory_analysis().generated_code_size_in_bytes
    return Plan(
        config=config,
        topology=setting.topology,
        mesh=dict(mesh.shape),
        programs=tuple(programs),
        declared={},
        memory=gpipe_memory(compiled, pipeline, data_bytes(setting.facts, config, mesh.size)),
        code=max(code),
        full_state=nbytes(setting.full_state()),
        pipeline=(parts, stages),
    )


def lying(tree: Any, specs: PartitionSpec | Mapping[str, PartitionSpec], mesh: Mesh) -> Any:
    """The shapes of a tree, where they lie on the mesh."""
    if isinstance(specs, Mapping):
        return {name: lying(tree[name], spec, mesh) for name, spec in specs.items()}
    return shapes_on(NamedSharding(mesh, specs), tree)


def _program(name: str, runs: int, program: jax.stages.Compiled, sent: float = 0.0) -> Program:
    cost, found = program.cost_analysis() or {}, tuple(collectives(program))
    sent += sum(collective.sent for collective in found)
    return Program(name, runs, cost.get("flops", 0.0), cost.get("bytes accessed", 0.0), found, sent)
