"""Devices: which of them a run uses, how arrays are placed on them, and the rule for collectives on CPU."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from loft_jax.config import Config, nearest_multiple
from loft_jax.errors import UserError, no_device

WORKER, DATA = "worker", "data"
REPLICATED = PartitionSpec()
PER_WORKER = PartitionSpec(WORKER)
PER_DEVICE = PartitionSpec((WORKER, DATA))


def make_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the mesh (worker, data) of a run: D worker devices, D the largest divisor of S that fits, times `mesh.data`.

    With several processes, each gives the same number of devices; those of one process are next to each other, along
    `data` first. Under GPipe the worker devices are those of the stages.

    Args:
      devices: the devices to choose from; None for all that JAX finds.

    Raises:
      UserError: there are not enough devices for the settings in `mesh`.
    """
    given, devices = devices is not None, _find_devices() if devices is None else devices
    data, stages = config.mesh.data, config.gpipe.stages
    hint = "; on a CPU raise mesh.cpu_devices" if devices[0].platform == "cpu" and not given else ""
    if data > len(devices):
        raise UserError(
            f"mesh.data={data}: only {len(devices)} {devices[0].platform} devices are available; try "
            f"{len(devices)}{hint}"
        )
    if stages is not None and stages > len(devices):
        raise UserError(
            f"gpipe.stages={stages}: each stage needs its own device, and only {len(devices)} {devices[0].platform} "
            f"devices are available; try {len(devices)}{hint}"
        )
    processes = _group_by_process(devices)
    count = data * (stages or _count_worker_devices(config, devices, len(processes), hint))
    used = [device for own in processes for device in own[: count // len(processes)]]
    # Auto axes: with the default, Explicit, indexing a sharded array outside shard_map is an error.
    # Mesh, not jax.make_mesh: that refuses some subsets of a TPU slice. So the devices keep their own order.
    return Mesh(np.array(used).reshape(-1, data), (WORKER, DATA), axis_types=(AxisType.Auto,) * 2)


def _count_worker_devices(config: Config, devices: Sequence[jax.Device], processes: int, hint: str) -> int:
    """Count the devices, or groups of `mesh.data` devices, for the workers: equally many from every process."""
    asked, data, workers = config.mesh.worker, config.mesh.data, config.loft.workers
    fitting = [d for d in range(1, len(devices) // data + 1) if workers % d == 0 and d * data % processes == 0]
    if not fitting:
        raise UserError(
            f"loft.workers={workers}: with mesh.data={data} they cannot be spread evenly over {processes} processes "
            f"with {len(devices)} devices in all; try loft.workers={nearest_multiple(workers, processes)}{hint}"
        )
    if asked is not None and asked * data > len(devices):
        raise UserError(
            f"mesh.worker={asked}: with mesh.data={data} it needs {asked * data} devices, but only {len(devices)} "
            f"{devices[0].platform} devices are available; try {max(fitting)}{hint}"
        )
    if asked is not None and asked not in fitting:
        raise UserError(
            f"mesh.worker={asked}: with mesh.data={data} its {asked * data} devices cannot be taken evenly from "
            f"{processes} processes; try {max(fitting)}"
        )
    return asked or max(fitting)


def _group_by_process(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """List the devices of each process, in their own order."""
    owners = sorted({device.process_index for device in devices})
    return [[device for device in devices if device.process_index == owner] for owner in owners]


def _find_devices() -> list[jax.Device]:
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        raise UserError(no_device(error)) from error


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy arrays, which every process has, to every device of the mesh."""
    return distribute(tree, NamedSharding(mesh, REPLICATED))


def distribute(tree: Any, sharding: Sharding) -> Any:
    """Place arrays, which every process has, with a sharding: each device gets its part; processes send nothing."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # device_put would first compare the arrays of all processes, byte by byte.
    hosted = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda part: a[part]), hosted)


def shapes_with_sharding(sharding: Sharding, tree: Any) -> Any:
    """Return the shapes and dtypes of a tree of arrays or shapes, all with the same sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shapes_with_specs(specs: Any, tree: Any, mesh: Mesh) -> Any:
    """Return the shapes and dtypes of a tree, sharded over a mesh; `specs` is a prefix of the tree."""
    return jax.tree.map(
        lambda spec, part: shapes_with_sharding(NamedSharding(mesh, spec), part),
        specs,
        tree,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def nbytes(tree: Any) -> int:
    """Count the bytes of a tree of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_on_device(shapes: Any) -> int:
    """Return the bytes that a tree of sharded shapes takes on one device."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def wait_for_collective(tree: Any, mesh: Mesh) -> Any:
    """On CPU, wait for the result of a program with a collective; elsewhere return at once.

    Call it on every such result before the next program is dispatched. Virtual CPU devices share one thread pool: a
    collective that is dispatched while another one runs can block it, and XLA aborts the process. Accelerators order
    collectives themselves.
    """
    return jax.block_until_ready(tree) if mesh.devices.flat[0].platform == "cpu" else tree
