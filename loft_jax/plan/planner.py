"""A round compiled for devices that need not be there: memory, bytes, operations, and a time that follows from them.

Nothing runs on the devices: arguments are shapes, with the shardings of a run's arrays.
"""

import jax

from loft_jax.config import Config, largest_divisor
from loft_jax.cost import Progress, RoundBill, nbytes
from loft_jax.data import AnyDataset, Facts
from loft_jax.devices import configure_jax, make_mesh
from loft_jax.errors import UserError
from loft_jax.methods import check_data, check_method
from loft_jax.models import Network, model_of
from loft_jax.plan.plan import Plan, compiler_refusal
from loft_jax.plan.topology import Topology


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
    model: Network | None = None,
) -> Plan:
    """Compile the programs of a round of the config for the topology.

    Args:
      facts, dataset: of `facts_to_compile_for`.
      model: instead of the config's own.

    Raises:
      UserError: config, model and devices do not go together, or the compiler says that a program does not fit.
    """
    model = model or model_of(config, facts.num_classes)
    check_method(model, config)
    check_data(config, facts, config.data.name)
    mesh = make_mesh(config, topology.devices())
    check_whole_slice(config, topology, mesh.size)
    bill = RoundBill.of(config, model, facts, dataset, mesh)
    compiled = bill.compiled(progress, lambda name, error: compiler_refusal(config, topology, name, error))
    stages = config.gpipe.stages
    return Plan(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        compiled=compiled,
        full_state=0 if bill.method.holds_full else nbytes(bill.full),
        pipeline=None if stages is None else (config.gpipe.microbatches, stages),
    )


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
