"""What a run tells people: its first lines, the programs of a dry run, and the summary at the end."""

import sys
from typing import Any

from rich.table import Table

from loft_jax.config import Config
from loft_jax.progress import console, duration

PHASES = ("compile", "train", "sync", "evaluation")


def print_setup(experiment: Any) -> None:
    """The first lines of a run: devices, data, model, rounds, bytes per sync."""
    import jax

    config, mesh = experiment.config, experiment.mesh
    idle = [str(d) for d in jax.devices() if d not in mesh.devices.flat]
    print(
        f"devices   {mesh.size} {jax.devices()[0].platform} of {jax.device_count()}, idle: {', '.join(idle) or 'none'}"
    )
    slots = config.loft.workers // mesh.shape["worker"]
    print(
        f"mesh      worker {mesh.shape['worker']} x data {mesh.shape['data']}; {config.loft.workers} workers, "
        f"{slots} a device"
    )
    data = experiment.dataset
    size = "x".join(map(str, data.train_images.shape[1:]))
    print(
        f"data      {data.name}: {len(data.train_labels):,} training and {len(data.test_labels):,} test images, {size}"
    )
    full, compact = parameter_counts(experiment)
    print(
        f"model     {config.model.name}: {full:,} parameters; sub-CNN of a worker: {compact:,} ({compact / full:.0%})"
    )
    epochs = config.epochs(config.train.rounds, len(data.train_labels))
    print(
        f"run       {config.train.rounds} rounds of {config.loft.local_steps} local steps, batch "
        f"{config.data.batch_size} a worker: {epochs:.1f} epochs"
    )
    payload = sync_payload_bytes(experiment)
    ring = 2 * (mesh.shape["worker"] - 1) / mesh.shape["worker"] * payload
    print(f"sync      {_mega(payload)} summed over workers; each device sends {_mega(ring)} in a ring")
    sys.stdout.flush()


def parameter_counts(experiment: Any) -> tuple[int, int]:
    """Parameters of the full CNN and of a worker's sub-CNN."""
    import jax
    import numpy as np

    image = jax.ShapeDtypeStruct((1, *experiment.dataset.train_images.shape[1:]), np.float32)
    counts = []
    for module in (experiment.model, experiment.round.step.model.clone(norm_axis=None)):
        params = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
        counts.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
    return counts[0], counts[1]


def sync_payload_bytes(experiment: Any) -> int:
    """Bytes of what one sync sums over the workers: the state's arrays, and the loss."""
    import jax

    state = {name: part for name, part in experiment.state_shapes().items() if name != "round"}
    return 4 + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def print_programs(programs: dict[str, Any]) -> None:
    """Memory and compute of a round's compiled programs, of one device."""
    table = Table("program", "FLOPs", "arguments", "results", "temporary", "peak", title="one device, one dispatch")
    for name, program in programs.items():
        memory, cost = program.memory_analysis(), program.cost_analysis() or {}
        sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
        peak = sum(sizes) - memory.alias_size_in_bytes
        table.add_row(name, f"{cost.get('flops', 0) / 1e9:.3f} G", *map(_mega, sizes), _mega(peak))
    console().print(table)


def summarise(experiment: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a finished run from its rows of metrics; times add up over resumed starts."""
    import jax

    config: Config = experiment.config
    last = rows[-1]
    seconds = {phase: sum(row.get(f"seconds/{phase}", 0.0) for row in rows) for phase in PHASES}
    images = config.loft.workers * config.loft.local_steps * config.data.batch_size * config.train.rounds
    full, compact = parameter_counts(experiment)
    return {
        "test/accuracy": last["test/accuracy"],
        "test/loss": last["test/loss"],
        "train/loss": last["train/loss"],
        "round": last["round"],
        "step": last["step"],
        "epoch": last["epoch"],
        "images": images,
        "images_per_second": images / (seconds["train"] + seconds["sync"]),
        **{f"seconds/{phase}": value for phase, value in seconds.items()},
        "parameters": full,
        "parameters_sub_cnn": compact,
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


def print_summary(summary: dict[str, Any]) -> None:
    """The summary, for people."""
    method = (
        "plain SGD" if summary["workers"] == 1 else f"{summary['workers']} workers, partition {summary['partition']}"
    )
    seconds = {phase: summary[f"seconds/{phase}"] for phase in PHASES}
    split = ", ".join(f"{phase} {duration(value)}" for phase, value in seconds.items())
    print(
        f"finished  {summary['model']} on {summary['data']}, {method}: {summary['round']} rounds, "
        f"{summary['epoch']:.1f} epochs"
    )
    print(f"accuracy  {summary['test/accuracy']:.2%} on the test set (last round), loss {summary['test/loss']:.4f}")
    print(f"time      {duration(sum(seconds.values()))}: {split}")
    print(f"speed     {summary['images_per_second']:,.0f} images/s in training rounds, all workers", flush=True)


def _mega(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"
