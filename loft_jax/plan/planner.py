"""Makes a plan: compiles a round for devices that need not exist, and reads its memory, bytes and operations.

Nothing runs on the devices: the arguments are shapes, with the shardings that a run's arrays have.
"""

from dataclasses import replace
from functools import partial

import jax

from loft_jax.config import Config, largest_divisor
from loft_jax.cost import Progress, RoundBill
from loft_jax.data import AnyDataset, Facts
from loft_jax.devices import configure_jax, make_mesh, nbytes
from loft_jax.errors import UserError
from loft_jax.methods import check_data, check_method
from loft_jax.models import Network, make_model
from loft_jax.plan.plan import Plan, make_compiler_refusal
from loft_jax.plan.topology import Topology


def prepare(config: Config, topology: Topology) -> None:
    """Make process-wide settings before JAX looks for devices: everything that runs here runs on the CPU."""
    devices = {"cpu_devices": topology.size if topology.platform == "cpu" else 1}
    topology.prepare()
    configure_jax(config.model_copy(update={"mesh": config.mesh.model_copy(update=devices)}))
    jax.config.update("jax_platforms", "cpu")
    # Programs for devices that do not exist here can be written to the cache, but not read from it.
    jax.config.update("jax_enable_compilation_cache", topology.platform == "cpu")


def make_plan(
    config: Config,
    topology: Topology,
    facts: Facts,
    dataset: AnyDataset,
    progress: Progress = lambda *_: None,
    *,
    model: Network | None = None,
    kernels: bool = False,
) -> Plan:
    """Compile the programs of a round of the config for the topology.

    Args:
      facts, dataset: what `facts_to_compile_for` returns.
      progress: is called before each compilation.
      model: a model to use instead of the config's.
      kernels: whether to read the kernels of the programs; for GPUs they are always read.

    Raises:
      UserError: config, model and devices do not fit each other, or the compiler finds no room for a program.
    """
    model = model or make_model(config, facts.num_classes, facts.image_shape)
    check_method(model, config)
    check_data(config, facts, config.data.name)
    check_one_host(config, topology)
    mesh = make_mesh(config, topology.devices())
    check_whole_slice(config, topology, mesh.size)
    bill = RoundBill.from_config(config, model, facts, dataset, mesh)
    refusal = partial(make_compiler_refusal, config, topology)
    compiled = bill.compiled(progress, refusal, kernels=kernels)
    stages = config.gpipe.stages
    return Plan(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        compiled=compiled,
        full_state=0 if bill.method.holds_full else nbytes(replace(bill.full, beside=None)),
        pipeline=None if stages is None else (config.gpipe.microbatches, stages),
        hosts=tuple(device.process_index for device in mesh.devices.flat) if topology.hosts > 1 else (),
    )


def check_one_host(config: Config, topology: Topology) -> None:
    """Raise UserError if a pipeline would be spread over several hosts, because it runs in one process."""
    if config.gpipe.stages is not None and topology.hosts > 1:
        raise UserError(
            f"gpipe.stages={config.gpipe.stages}: GPipe runs in one process, but {topology.name} has {topology.hosts} "
            f"hosts; try --topology {topology.chip.name}:{topology.sides[1]}"
        )


def check_whole_slice(config: Config, topology: Topology, used: int) -> None:
    """Raise UserError if some chips of a TPU slice would be idle, because libtpu aborts for some parts of a slice."""
    if topology.platform != "tpu" or used == topology.size:
        return
    rows, batch = config.gpipe.stages or config.loft.workers, config.data.batch_size
    data = topology.size // rows
    if config.gpipe.stages is None and rows * data == topology.size and batch % data == 0:
        advice = f"mesh.data={data}"
    else:
        most = largest_divisor(topology.size, rows)
        advice = (
            f"gpipe.stages={most}" if config.gpipe.stages else f"loft.workers={most}, mesh.data={topology.size // most}"
        )
    raise UserError(
        f"--topology {topology.name}: the run would use {used} of its {topology.size} chips, but plans are made for "
        f"whole slices; try {advice}, or a smaller slice"
    )
