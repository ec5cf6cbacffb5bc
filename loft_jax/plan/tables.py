"""A plan as tables for a person to read, and as rows for programs."""

from collections.abc import Iterator
from typing import Any

from loft_jax.console import console, make_table, megabytes
from loft_jax.cost import Program
from loft_jax.devices import DATA, WORKER, Chip
from loft_jax.plan.plan import Plan, peak_seconds

Row = tuple[str, str, str, Any]


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
        yield from (("program", program.name, name, figure) for name, figure in figures.items())
        for kind, devices, payload, sent in _sum_collectives(program):
            yield "collective", f"{program.name} {kind} of {devices}", "payload bytes", payload
            yield "collective", f"{program.name} {kind} of {devices}", "bytes sent", sent
    for (program, kind, devices), payload in plan.declared.items():
        yield "collective", f"{program} {kind} of {devices}", "payload bytes declared", payload
    yield "round", "", "flops of all devices", plan.flops
    yield "round", "", "bytes sent", plan.sent
    compute, sending = plan.compute_seconds(chip), plan.sending_seconds(chip)
    if compute is not None and sending is not None:
        yield "round", "compute", "seconds", compute
        yield "round", "sending", "seconds", sending
        yield "round", "images a second", "all devices", plan.config.images_per_round / (compute + sending)


def _sum_collectives(program: Program) -> list[tuple[str, int, int, float]]:
    """Return kind, devices, bytes that a device contributes and bytes that it sends in a round, for each collective."""
    total: dict[tuple[str, int], tuple[int, float]] = {}
    for found in program.collectives:
        payload, sent = total.get((found.kind, found.devices), (0, 0.0))
        key, runs = (found.kind, found.devices), program.runs
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
    print(f"{'devices':<9} {plan.used} of {plan.topology.size} in {plan.topology.name}")
    print(f"{'mesh':<9} {mesh}")
    print(f"{'round':<9} {config.loft.local_steps} local steps, {config.images_per_round:,} images, {config.precision}")
    _print_programs(plan, chip)
    _print_collectives(plan)
    _print_memory(plan, chip)
    for name, text in _times(plan, chip).items():
        print(f"{name:<9} {text}")


def _print_programs(plan: Plan, chip: Chip) -> None:
    table = make_table(
        "programs of a round, on one device", "program", "runs", "GFLOPs a run", "GB accessed a run", "at peak"
    )
    for program in plan.programs:
        seconds = f"{peak_seconds(program, chip.peaks) * 1e3:,.2f} ms" if chip.peaks else ""
        table.add_row(program.name, f"{program.runs}", _billions(program.flops), _billions(program.accessed), seconds)
    console().print(table)


def _print_collectives(plan: Plan) -> None:
    headings = ("devices", "payload", "as declared", "sent")
    table = make_table("sent in a round, by one device", "program", "collective", *headings, left=2)
    for program in plan.programs:
        for kind, devices, payload, sent in _sum_collectives(program):
            declared = plan.declared.get((program.name, kind, devices))
            sizes = [megabytes(size) if size is not None else "" for size in (payload, declared, sent)]
            table.add_row(program.name, kind, str(devices), *sizes)
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
    if plan.full_state:
        table.add_row("between rounds, for the full CNN", megabytes(plan.full_state))
    console().print(table)


def _times(plan: Plan, chip: Chip) -> dict[str, str]:
    compute, sending = plan.compute_seconds(chip), plan.sending_seconds(chip)
    lines = {"compute": f"{plan.flops / 1e12:,.4g} TFLOPs a round on all devices"}
    peaks = {"TFLOP/s": chip.tflops, "GB/s of memory": chip.memory_gbps, "GB/s sent": chip.link_gbps}
    if any(peaks.values()):
        lines["peaks"] = ", ".join(f"{figure:,g} {unit}" for unit, figure in peaks.items() if figure)
    if compute is None or sending is None:
        options = "--peak_tflops, --memory_gbps" + (" and --link_gbps" if plan.sent else "")
        return lines | {"time": f"no peak figures of a {chip.name} are known; give {options} for the time of a round"}
    total = compute + sending
    lines["time"] = (
        f"{total * 1e3:,.2f} ms a round at the chip's peaks: {compute * 1e3:,.2f} ms of programs, then "
        f"{sending * 1e3:,.2f} ms of sending"
    )
    lines["speed"] = f"{plan.config.images_per_round / total:,.0f} images/s at most; computed, not measured"
    return lines


def _billions(number: float) -> str:
    return f"{number / 1e9:,.4g}"
