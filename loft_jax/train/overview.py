"""An experiment in numbers: its first lines, its programs, and the figures of its summary."""

from typing import Any

import jax

from loft_jax.console import console, make_table, megabytes
from loft_jax.cost import CompiledRound
from loft_jax.loft import LearningRate
from loft_jax.methods import idle_advice
from loft_jax.models import needs_images, parameter_count
from loft_jax.storage import PHASES
from loft_jax.train.experiment import Experiment
from loft_jax.train.recovery import rounds_without_rows

# Names in a line.
_SHOWN = 4


def print_setup(experiment: Experiment) -> None:
    """Print the first lines of a run: devices, mesh, data, model, rounds, bytes per sync; and a warning if any."""
    config, mesh, data = experiment.config, experiment.mesh, experiment.dataset
    idle = [f"{d.platform}:{d.id}" for d in jax.devices() if d not in mesh.devices.flat]
    used = f"{mesh.size} {jax.devices()[0].platform} of {jax.device_count()}"
    shape = data.image_shape
    method_lines = experiment.method.describe(experiment.state_shapes)
    full, compact = (parameter_count(model, shape) for model in (experiment.model, experiment.method.step.model))
    lines = {
        "devices": f"{used}, idle: {', '.join(idle) or 'none'}",
        **({"idle": idle_advice(config, experiment.model, data, jax.devices())} if idle else {}),
        "mesh": method_lines.pop("mesh"),
        "data": f"{data.name}: {data.examples:,} training and {data.test_examples:,} test images, "
        + (f"{data.validation_examples:,} held out for validation, " if data.validation_examples else "")
        + "x".join(map(str, shape))
        + data.loading_text,
        "model": f"{config.model.name}: {full:,} parameters; sub-CNN of a worker: {compact:,} ({compact / full:.0%})",
        "run": f"{config.train.rounds} rounds of {config.loft.local_steps} local steps, batch {config.data.batch_size} "
        f"a worker: {config.epochs(config.train.rounds, data.examples):.1f} epochs",
        **method_lines,
        **_describe_groups(experiment),
        **({"warning": config.warning} if config.warning else {}),
    }
    for name, text in lines.items():
        print(f"{name:<9} {text}", flush=True)


def _describe_groups(experiment: Experiment) -> dict[str, str]:
    """Say which groups of a network are split, and what is left whole; nothing of those that the package knows."""
    if not needs_images(experiment.config):
        return {}
    groups, workers = experiment.method.groups, experiment.config.loft.workers
    split = f"{sum(group.partitioned for group in groups)} split over the workers"
    if experiment.model.declares_groups:
        return {"groups": f"{len(groups)} declared by the network, {split}"}
    text = f"{len(groups)} found by tracing, {split}"
    if undivided := [f"{g.name} ({g.width})" for g in groups if g.width % workers]:
        text += f"; {workers} workers do not divide {', '.join(undivided[:_SHOWN])}"
        text += f" and {len(undivided) - _SHOWN} more" if len(undivided) > _SHOWN else ""
    whole = list(experiment.model.left_whole())
    names = ", ".join(whole[:_SHOWN]) + (", ..." if len(whole) > _SHOWN else "")
    return {"groups": f"{text}; {len(whole)} left whole ({names}): python -m loft_jax.groups says why"}


def print_programs(compiled: CompiledRound) -> None:
    """Print the memory and compute of a round's compiled programs, on one device."""
    headings = ("FLOPs", "arguments", "results", "temporary", "in all")
    table = make_table("one device; every step of a loop is counted", "program", *headings)
    for program in compiled.programs:
        sizes = (program.arguments, program.results, program.temporary)
        total = sum(sizes) - program.aliased
        table.add_row(program.name, f"{program.flops / 1e9:.3f} G", *map(megabytes, sizes), megabytes(total))
    console().print(table)
    peak = compiled.memory
    print(f"memory    {megabytes(peak.total)} at the peak: {megabytes(peak.resident)} stay, {peak.name} needs the rest")


def describe_learning_rates(learning_rate: LearningRate, end: int, steps: int) -> str:
    """Say the learning rate of the last of some local steps, the last before `end`, and the range over all of them."""
    rates = [float(learning_rate(step)) for step in range(end - steps, end)]
    least, most = (f"{bound(rates):.3g}" for bound in (min, max))
    text = f"learning rate {rates[-1]:.3g}"
    return text if least == most else f"{text} at its last local step, {least} to {most} over the round"


def summarise(experiment: Experiment, rows: list[dict[str, Any]], first_round: int = 0) -> dict[str, Any]:
    """Make the summary of a finished run from its rows of metrics; times are sums over all resumed starts.

    Figures are those of the last round. The best of the evaluated test accuracies has a name of its own: it was chosen
    by test images, and is too high. Where rows are lost, sums over the run are None, the speed is that of the rounds
    that are known, and `rounds_without_rows` names the others.

    Args:
      first_round: completed rounds with which the run began.
    """
    config, last = experiment.config, rows[-1]
    lost = rounds_without_rows(rows, last["round"], first_round)
    trained = [row for row in rows if "seconds/train" in row]
    spent = sum(row.get(f"seconds/{phase}", 0.0) for row in trained for phase in ("train", "sync"))
    images_per_second = config.images_per_round * len(trained) / spent if spent else None
    best = max((row for row in rows if "test/accuracy" in row), key=lambda row: row["test/accuracy"])
    shape = experiment.dataset.image_shape
    return {
        **{key: last[key] for key in ("test/accuracy", "test/loss", "round", "step", "epoch")},
        **({} if lost else {"test/accuracy_best": best["test/accuracy"], "round_best": best["round"]}),
        **{key: last[key] for key in ("train/loss", "validation/accuracy", "validation/loss") if key in last},
        "images": config.images_per_round * (last["round"] - first_round),
        "images_per_second": images_per_second,
        **(experiment.share_of_peak(images_per_second) if images_per_second else {}),
        **{f"seconds/{phase}": None if lost else _total(rows, f"seconds/{phase}") for phase in PHASES},
        "parameters": parameter_count(experiment.model, shape),
        "parameters_sub_cnn": parameter_count(experiment.method.step.model, shape),
        "bytes_on_the_wire": None if lost else _total(rows, "bytes_on_the_wire"),
        **({"rounds_without_rows": lost} if lost else {}),
        **experiment.method.figures(experiment.state_shapes),
        "model": config.model.name,
        "data": experiment.dataset.name,
        "method": config.method,
        "workers": config.loft.workers,
        "partition": config.loft.partition,
        "seed": config.seed,
        "config_hash": config.hash(),
        "devices": experiment.mesh.size,
        "device_kind": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def _total(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row.get(key, 0.0) for row in rows)
