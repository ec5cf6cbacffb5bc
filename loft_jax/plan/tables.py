"""A plan as tables for a person to read, and as rows for programs."""

from collections.abc import Iterator
from typing import Any

from loft_jax.console import console, make_table, megabytes
from loft_jax.cost import Program, Seconds, cards_together, program_seconds, sum_kernels
from loft_jax.devices import DATA, GB, WORKER, Chip
from loft_jax.plan.plan import Plan

Row = tuple[str, str, str, Any]

# Of a card's memory, JAX's default.
_TAKEN_SHARE = 0.75


def as_rows(plan: Plan, chip: Chip) -> Iterator[Row]:
    """Yield (part, name, figure, value) for everything that is known: bytes, operations and seconds.

    They are of one device in one round unless the figure says otherwise. Figures that are not known are left out.
    """
    yield from (("mesh", axis, "devices", size) for axis, size in plan.mesh.items())
    memory = {
        "resident": plan.memory.resident,
        "program": plan.memory.program,
        "code": plan.compiled.code,
        "peak": plan.peak,
        "full state, between rounds": plan.full_state,
    }
    yield from (("memory", name, "bytes", size) for name, size in memory.items())
    for program in plan.programs:
        figures = {"runs": program.runs, "flops of a run": program.flops, "bytes accessed by a run": program.accessed}
        if program.kernels:
            figures["kernels of a run"] = sum_kernels(program.kernels)[0]
        yield from (("program", program.name, name, figure) for name, figure in figures.items())
        if in_step := plan.step_kernels(program):
            yield "local step", program.name, "kernels", sum(runs for _, runs in in_step)
            yield "local step", program.name, "bytes", sum(runs * kernel.each for kernel, runs in in_step)
        for kind, devices, together, payload, sent in _sum_collectives(plan, program):
            name = f"{program.name} {kind} of {devices}{f', {together} a host' if together else ''}"
            yield "collective", name, "payload bytes", payload
            yield "collective", name, "bytes sent", sent
    for (program, kind, devices), payload in plan.declared.items():
        yield "collective", f"{program} {kind} of {devices}", "payload bytes declared", payload
    yield "round", "", "flops of all devices", plan.flops
    yield "round", "", "bytes sent", plan.sent
    if (seconds := _round_seconds(plan, chip)) is not None:
        yield "round", "compute", "seconds", seconds.total - seconds.links
        yield "round", "sending", "seconds", seconds.links
        yield from (("round", f"bound by {bound}", "seconds", each) for bound, each in seconds.by_bound.items())
        yield "round", "images a second", "all devices", plan.config.images_per_round / seconds.total


def _round_seconds(plan: Plan, chip: Chip) -> Seconds | None:
    """Return the time of a round's programs and of what it sends; None if the chip's figures are not known."""
    compute, sending = plan.compute(chip), plan.sending_seconds(chip)
    return None if compute is None or sending is None else compute + Seconds(links=sending)


def _sum_collectives(plan: Plan, program: Program) -> list[tuple[str, int, int | None, float, float]]:
    """Sum the collectives of a round that are of one kind, among as many devices.

    Returns:
      For each: kind, devices, those of them in one host (None if all are), bytes that a device contributes, and sends.
    """
    total: dict[tuple[str, int, int | None], tuple[float, float]] = {}
    for found in program.collectives:
        key, runs = (found.kind, found.devices, cards_together(found, plan.hosts)), program.runs
        payload, sent = total.get(key, (0, 0.0))
        total[key] = (payload + runs * found.times * found.payload, sent + runs * found.sent)
    return [(*key, *figures) for key, figures in total.items()]


def print_plan(plan: Plan, chip: Chip) -> None:
    """Print what is planned; tables of programs, of collectives and of memory; and the time of a round."""
    config, batch = plan.config, plan.config.data.batch_size
    if plan.pipeline:
        microbatches, stages = plan.pipeline
        mesh = f"{stages} stages, {microbatches} micro-batches of {batch // microbatches}"
    else:
        mesh = (
            f"worker {plan.mesh[WORKER]} x data {plan.mesh[DATA]}; {config.loft.workers} workers, batch {batch} each, "
        )
        mesh += f"{batch // plan.mesh[DATA]} a device"
    idle = plan.topology.size - plan.used
    print(
        f"{'devices':<9} {plan.used} of {plan.topology.size} in {plan.topology.name}{f'; idle: {idle}' if idle else ''}"
    )
    print(f"{'mesh':<9} {mesh}")
    if plan.hosts:
        print(f"{'hosts':<9} {plan.topology.hosts}; {_describe_axes(plan)}")
    print(f"{'round':<9} {config.loft.local_steps} local steps, {config.images_per_round:,} images, {config.precision}")
    _print_programs(plan, chip)
    _print_collectives(plan)
    _print_memory(plan, chip)
    for name, text in _times(plan, chip).items():
        print(f"{name:<9} {text}")


def _describe_axes(plan: Plan) -> str:
    """Say which axes of the mesh cross hosts."""
    rows, columns = plan.mesh[WORKER], plan.mesh[DATA]
    ways = {
        WORKER: any(len(set(plan.hosts[column::columns])) > 1 for column in range(columns)),
        DATA: any(len(set(plan.hosts[row * columns : (row + 1) * columns])) > 1 for row in range(rows)),
    }
    used = {axis: crosses for axis, crosses in ways.items() if plan.mesh[axis] > 1}
    return ", ".join(f"{axis} {'crosses hosts' if crosses else 'within a host'}" for axis, crosses in used.items())


def _print_programs(plan: Plan, chip: Chip) -> None:
    counted = any(program.kernels for program in plan.programs)
    headings = ["program", "runs", "GFLOPs a run", "GB accessed a run", *(["kernels a run"] if counted else [])]
    table = make_table("programs of a round, on one device", *headings, "at peak", "bound")
    for program in plan.programs:
        seconds = program_seconds(program, chip, plan.config.precision)
        kernels = [f"{sum_kernels(program.kernels)[0]:,}"] if counted else []
        peak = [f"{seconds.total * 1e3:,.2f} ms", seconds.bound] if seconds else ["", ""]
        figures = [_billions(program.flops), _billions(program.accessed)]
        table.add_row(program.name, f"{program.runs:g}", *figures, *kernels, *peak)
    console().print(table)


def _print_collectives(plan: Plan) -> None:
    headings = ("devices", "payload", "as declared", "sent")
    table = make_table("sent in a round, by one device", "program", "collective", *headings, left=2)
    for program in plan.programs:
        for kind, devices, together, payload, sent in _sum_collectives(plan, program):
            declared = plan.declared.get((program.name, kind, devices))
            sizes = [megabytes(size) if size is not None else "" for size in (payload, declared, sent)]
            table.add_row(program.name, kind, f"{devices}{f', {together} a host' if together else ''}", *sizes)
        if program.sent and not program.collectives:
            table.add_row(program.name, "to neighbouring stages", "", "", "", megabytes(program.runs * program.sent))
    if table.rows:
        console().print(table)
    else:
        print(f"{'sent':<9} nothing: there is no other device")


def _print_memory(plan: Plan, chip: Chip) -> None:
    table = make_table("memory of the device that holds most", "for", "")
    table.add_row("state, data, workers' states", megabytes(plan.memory.resident))
    table.add_row(f"the program {plan.memory.name}", megabytes(plan.memory.program))
    if plan.compiled.code:
        table.add_row("the programs' code", megabytes(plan.compiled.code))
    table.add_row("peak in training", megabytes(plan.peak))
    if chip.memory_gb:
        share = f"{plan.peak / chip.memory_gb / 1e9:.1%} of {chip.memory_gb * 1e3:,.0f} MB"
        table.add_row("share of the chip's memory", share)
    if chip.platform == "cuda" and chip.memory_gb and plan.peak > _TAKEN_SHARE * chip.memory_gb * GB:
        table.caption = (
            f"JAX takes {_TAKEN_SHARE:.0%} of a card's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says more"
        )
    if plan.full_state:
        table.add_row("between rounds, for the full CNN", megabytes(plan.full_state))
    console().print(table)


def _times(plan: Plan, chip: Chip) -> dict[str, str]:
    lines = {"compute": f"{plan.flops / 1e12:,.4g} TFLOPs a round on all devices"}
    in_step = [found for program in plan.programs for found in plan.step_kernels(program)]
    if in_step and not plan.pipeline:
        moved = sum(runs * kernel.each for kernel, runs in in_step)
        lines["step"] = f"{sum(runs for _, runs in in_step):,.0f} kernels and {moved / 1e9:,.3f} GB a local step"
    peaks = {
        "TFLOP/s": chip.peak_tflops(plan.config.precision),
        "GB/s of memory": chip.memory_gbps,
        "GB/s sent": chip.link_gbps,
        "GB/s sent to other hosts": chip.network_gbps if plan.hosts else None,
        "us a kernel": chip.kernel_us,
    }
    if any(peaks.values()):
        lines["peaks"] = ", ".join(f"{figure:,g} {unit}" for unit, figure in peaks.items() if figure)
    if (seconds := _round_seconds(plan, chip)) is None:
        options = "--peak_tflops, --memory_gbps" + (" and --link_gbps" if plan.sent else "")
        return lines | {"time": f"no peak figures of a {chip.name} are known; give {options} for the time of a round"}
    whole, sending = seconds.total * 1e3, seconds.links * 1e3
    lines["time"] = (
        f"{whole:,.2f} ms a round at the chip's peaks: {whole - sending:,.2f} ms of programs, then "
        f"{sending:,.2f} ms of sending"
    )
    shares = ", ".join(f"{bound} {each / seconds.total:.0%}" for bound, each in seconds.by_bound.items() if each)
    lines["bound"] = f"{seconds.bound} ({shares})"
    lines["speed"] = f"{plan.config.images_per_round / seconds.total:,.0f} images/s at most; computed, not measured"
    return lines


def _billions(number: float) -> str:
    return f"{number / 1e9:,.4g}"
