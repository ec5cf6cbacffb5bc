"""What an experiment is, in numbers: its first lines, its programs, and the figures of its summary."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from rich.table import Table

from loft_jax.experiment import Experiment
from loft_jax.mesh import DATA, WORKER
from loft_jax.progress import console
from loft_jax.summary import PHASES


def print_setup(experiment: Experiment) -> None:
    """The first lines of a run: devices, mesh, data, model, rounds, bytes per sync."""
    config, mesh, data = experiment.config, experiment.mesh, experiment.dataset
    worker, workers = mesh.shape[WORKER], config.loft.workers
    idle = [f"{d.platform}:{d.id}" for d in jax.devices() if d not in mesh.devices.flat]
    used = f"{mesh.size} {jax.devices()[0].platform} of {jax.device_count()}"
    shape = data.train_images.shape[1:]
    full, compact = (parameter_count(model, shape) for model in (experiment.model, experiment.round.step.model))
    payload = sync_payload_bytes(experiment)
    sent = 2 * (worker - 1) / worker * payload
    lines = {
        "devices": f"{used}, idle: {', '.join(idle) or 'none'}",
        "mesh": f"worker {worker} x data {mesh.shape[DATA]}; {workers} workers, {workers // worker} a device",
        "data": f"{data.name}: {len(data.train_labels):,} training and {len(data.test_labels):,} test images, "
        + "x".join(map(str, shape)),
        "model": f"{config.model.name}: {full:,} parameters; sub-CNN of a worker: {compact:,} ({compact / full:.0%})",
        "run": f"{config.train.rounds} rounds of {config.loft.local_steps} local steps, batch {config.data.batch_size} "
        f"a worker: {config.epochs(config.train.rounds, len(data.train_labels)):.1f} epochs",
        "sync": f"{_megabytes(payload)} summed over the workers; each device sends {_megabytes(sent)} in a ring",
    }
    for name, text in lines.items():
        print(f"{name:<9} {text}", flush=True)


def print_programs(programs: dict[str, jax.stages.Compiled]) -> None:
    """Memory and compute of a round's compiled programs, of one device."""
    table = Table(
        "program",
        "FLOPs",
        "arguments",
        "results",
        "temporary",
        "peak",
        title="one device; a loop's body is counted once",
    )
    for name, program in programs.items():
        memory, cost = program.memory_analysis(), program.cost_analysis() or {}
        sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
        peak = sum(sizes) - memory.alias_size_in_bytes
        table.add_row(name, f"{cost.get('flops', 0) / 1e9:.3f} G", *map(_megabytes, sizes), _megabytes(peak))
    console().print(table)


def summarise(experiment: Experiment, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a finished run from its rows of metrics; times add up over resumed starts."""
    config, last = experiment.config, rows[-1]
    seconds = {phase: sum(row.get(f"seconds/{phase}", 0.0) for row in rows) for phase in PHASES}
    images = config.images_per_round * last["round"]
    shape = experiment.dataset.train_images.shape[1:]
    return {
        **{key: last[key] for key in ("test/accuracy", "test/loss", "train/loss", "round", "step", "epoch")},
        "images": images,
        "images_per_second": images / (seconds["train"] + seconds["sync"]),
        **{f"seconds/{phase}": value for phase, value in seconds.items()},
        "parameters": parameter_count(experiment.model, shape),
        "parameters_sub_cnn": parameter_count(experiment.round.step.model, shape),
        "sync_payload_bytes": sync_payload_bytes(experiment),
        "model": config.model.name,
        "data": config.data.name,
        "workers": config.loft.workers,
        "partition": config.loft.partition,
        "seed": config.seed,
        "config_hash": config.hash(),
        "devices": experiment.mesh.size,
        "device_kind": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def parameter_count(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Parameters of a network for images of this shape (height, width, channels)."""
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), image)["params"]))


def sync_payload_bytes(experiment: Experiment) -> int:
    """Bytes of what one sync sums over the workers: the state's arrays, and the loss."""
    state = {name: part for name, part in experiment.state_shapes().items() if name != "round"}
    return 4 + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"
