"""What an experiment is, in numbers: its first lines, its programs, and the figures of its summary."""

from typing import Any

import jax
from rich.table import Table

from loft_jax.console import console, megabytes
from loft_jax.devices import DATA, WORKER
from loft_jax.gpipe import GPipe
from loft_jax.models import parameter_count
from loft_jax.storage import PHASES
from loft_jax.train.experiment import Experiment


def print_setup(experiment: Experiment) -> None:
    """The first lines of a run: devices, mesh, data, model, rounds, bytes per sync; then a warning if there is one."""
    config, mesh, data = experiment.config, experiment.mesh, experiment.dataset
    idle = [f"{d.platform}:{d.id}" for d in jax.devices() if d not in mesh.devices.flat]
    used = f"{mesh.size} {jax.devices()[0].platform} of {jax.device_count()}"
    shape = data.image_shape
    full, compact = (parameter_count(model, shape) for model in (experiment.model, experiment.round.step.model))
    lines = {
        "devices": f"{used}, idle: {', '.join(idle) or 'none'}",
        "mesh": _mesh_text(experiment),
        "data": f"{data.name}: {data.examples:,} training and {data.test_examples:,} test images, "
        + "x".join(map(str, shape))
        + (f", streamed by {data.readers_text}" if data.streamed else ""),
        "model": f"{config.model.name}: {full:,} parameters; sub-CNN of a worker: {compact:,} ({compact / full:.0%})",
        "run": f"{config.train.rounds} rounds of {config.loft.local_steps} local steps, batch {config.data.batch_size} "
        f"a worker: {config.epochs(config.train.rounds, data.examples):.1f} epochs",
        **_traffic_text(experiment),
        **({"warning": config.warning} if config.warning else {}),
    }
    for name, text in lines.items():
        print(f"{name:<9} {text}", flush=True)


def _mesh_text(experiment: Experiment) -> str:
    config, mesh = experiment.config, experiment.mesh
    if config.gpipe.stages is not None:
        return f"{config.gpipe.stages} stages, a device each"
    worker, workers = mesh.shape[WORKER], config.loft.workers
    return f"worker {worker} x data {mesh.shape[DATA]}; {workers} workers, {workers // worker} a device"


def _traffic_text(experiment: Experiment) -> dict[str, str]:
    """What goes from device to device, where, and how much of it."""
    if isinstance(gpipe := experiment.round, GPipe):
        names = experiment.model.block_names()
        stages = ", ".join(
            f"{names[first]} to {names[last - 1]} on {device.platform}:{device.id}"
            for (first, last), device in zip(gpipe.bounds, gpipe.devices, strict=True)
        )
        parts, size = gpipe.microbatches, gpipe.inputs[0].shape[0]
        moved = f"{parts} micro-batches of {size}; {megabytes(gpipe.bytes_per_step)} a step between the stages"
        return {"stages": stages, "pipeline": moved}
    traffic = experiment.sync_traffic
    exchanged = traffic.payloads.get("all-to-all", 0)
    moved = f"{megabytes(traffic.payloads.get('all-reduce', 0))} summed over the workers"
    if exchanged:
        moved += f", {megabytes(exchanged)} of filters exchanged"
    lines = {"sync": f"{moved}; each device sends {megabytes(traffic.sent)}, sums in a ring"}
    if experiment.mesh.shape[DATA] > 1:
        step = experiment.step_traffic
        summed = megabytes(sum(step.payloads.values()))
        lines["step"] = f"{summed} summed over a worker's devices; each sends {megabytes(step.sent)}, in a ring"
    return lines


def _traffic(experiment: Experiment) -> dict[str, Any]:
    if isinstance(experiment.round, GPipe):
        return {"gpipe_stages": len(experiment.round.bounds)}
    return {"sync_payload_bytes": sum(experiment.sync_traffic.payloads.values())}


def print_programs(programs: dict[Any, jax.stages.Compiled]) -> None:
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
        table.add_row(str(name), f"{cost.get('flops', 0) / 1e9:.3f} G", *map(megabytes, sizes), megabytes(peak))
    console().print(table)


def summarise(experiment: Experiment, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a finished run from its rows of metrics; times add up over resumed starts."""
    config, last = experiment.config, rows[-1]
    seconds = {phase: sum(row.get(f"seconds/{phase}", 0.0) for row in rows) for phase in PHASES}
    images = config.images_per_round * last["round"]
    shape = experiment.dataset.image_shape
    return {
        **{key: last[key] for key in ("test/accuracy", "test/loss", "train/loss", "round", "step", "epoch")},
        "images": images,
        "images_per_second": images / (seconds["train"] + seconds["sync"]),
        **{f"seconds/{phase}": value for phase, value in seconds.items()},
        "parameters": parameter_count(experiment.model, shape),
        "parameters_sub_cnn": parameter_count(experiment.round.step.model, shape),
        "bytes_on_the_wire": sum(row.get("bytes_on_the_wire", 0.0) for row in rows),
        **_traffic(experiment),
        "model": config.model.name,
        "data": config.data.name,
        "method": config.method,
        "workers": config.loft.workers,
        "partition": config.loft.partition,
        "seed": config.seed,
        "config_hash": config.hash(),
        "devices": experiment.mesh.size,
        "device_kind": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
