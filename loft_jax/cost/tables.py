"""Costs as tables for a person to read, and as rows for programs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from loft_jax.console import console, make_table, megabytes
from loft_jax.cost.methods import Cost

Row = dict[str, Any]


def as_rows(costs: Iterable[Cost]) -> list[Row]:
    """Return a flat row for each cost: bytes, FLOPs of one image; None for what is not known or does not apply.

    `gpipe_over_bytes` is the total of GPipe with as many stages, divided by the row's total (if it was measured, by the
    measured one). `peak_over_plain_sgd` is the device's peak memory divided by that of plain SGD.
    """
    costs = list(costs)
    steps = [(cost, cost.bytes.total) for cost in costs if cost.bytes and cost.bytes.event == "step"]
    gpipe = {cost.workers: total for cost, total in steps if cost.method.startswith("GPipe")}
    plain = next((cost.memory for cost in costs if cost.workers == 1), None)
    rows = []
    for cost in costs:
        moved: Row = asdict(cost.bytes) if cost.bytes else dict.fromkeys(_BYTES)
        trains = moved["event"] in ("sync", "step")
        on_the_wire = (moved["measured"] or moved["total"]) if trains else None
        memory = cost.memory
        rows.append(
            {
                "workers": cost.workers,
                "method": cost.method,
                "momentum": cost.momentum,
                "parameters": cost.full.parameters,
                "parameters_worker": cost.worker.parameters,
                "flops": cost.full.flops,
                "flops_worker": cost.worker.flops,
                "flops_6_macs": cost.full.conventional,
                "flops_6_macs_worker": cost.worker.conventional,
                **{f"bytes_{name}": moved[name] for name in _BYTES},
                "gpipe_over_bytes": gpipe[cost.workers] / on_the_wire
                if on_the_wire and cost.workers in gpipe
                else None,
                "memory_resident": memory and memory.resident,
                "memory_program": memory and memory.program,
                "memory_peak": memory and memory.total,
                "peak_over_plain_sgd": memory.total / plain.total if memory and plain else None,
            }
        )
    return rows


_BYTES = ("counts", "event", "sent", "received", "events", "total", "measured")


def print_setting(rows: Sequence[Row]) -> None:
    """Print three tables: size and compute, bytes, memory."""
    headings = ("parameters", "", "GFLOPs an image", "", "as 6 x MACs", "")
    table = make_table("size and compute of what a worker trains", "method", *headings)
    table.caption = (
        "GFLOPs: loss and gradients, products that are computed; 6 x MACs: as the literature counts, with padding"
    )
    shown = set()
    for row in rows:
        size = (row["parameters_worker"], row["flops_worker"])
        if size not in shown:
            shares = [f"{size[0] / row['parameters']:.1%}", f"{size[1] / row['flops']:.1%}"]
            name = row["method"].split(",")[0]
            cells = [f"{size[0]:,}", shares[0], f"{size[1] / 1e9:.3f}", shares[1]]
            if (macs := row["flops_6_macs_worker"]) is not None:
                cells += [f"{macs / 1e9:.3f}", f"{macs / row['flops_6_macs']:.1%}"]
            table.add_row(name, *cells)
        shown.add(size)
    console().print(table)
    headings = ("at each", "a worker sends", "receives", "times", "in all", "compiled", "GPipe / it")
    table = make_table("bytes over the whole run", "method", "momentum", *headings, left=3)
    table.caption = (
        "server: what the paper counts, up and down; other rows of LoFT and SGD: this program's collectives, on all "
        "devices, sums as rings (data-parallel: gradients and loss; if compiled, also norm statistics); GPipe: "
        "activations between its stages, and their gradients"
    )
    for row in (row for row in rows if row["bytes_total"] is not None):
        each = [megabytes(row[f"bytes_{way}"]) for way in ("sent", "received")]
        whole = [_gigabytes(row[f"bytes_{way}"]) for way in ("total", "measured")]
        over = f"{row['gpipe_over_bytes']:.2f}" if row["gpipe_over_bytes"] else ""
        table.add_row(
            row["method"], row["momentum"], row["bytes_event"], *each, f"{row['bytes_events']:,}", *whole, over
        )
    console().print(table)
    if any(row["memory_peak"] for row in rows):
        headings = ("resident", "program", "peak", "over plain SGD")
        table = make_table("peak memory of a device", "method", "momentum", *headings, left=2)
        for row in (row for row in rows if row["memory_peak"]):
            sizes = [megabytes(row[f"memory_{what}"]) for what in ("resident", "program", "peak")]
            over = row["peak_over_plain_sgd"]
            table.add_row(row["method"], row["momentum"], *sizes, f"{over:.3f}" if over else "")
        console().print(table)


def print_paper(rows: Sequence[Row]) -> None:
    """Print the paper's communication table: its figures and the predicted ones."""
    headings = ("setting", "method", "published", "predicted", "error", "as printed", "GPipe over LoFT")
    table = make_table("communication of the whole pretraining, GB (1e9 bytes)", *headings, left=2)
    for row in rows:
        figures = [f"{row[key]:,.2f}" for key in ("published_gb", "predicted_gb", "predicted_gb_as_printed")]
        times = f"{row['improvement']:.2f}x" if row["improvement"] else ""
        error = f"{row['relative_error']:+.3%}"
        table.add_row(row["setting"], row["method"], figures[0], figures[1], error, figures[2], times)
    console().print(table)


def _gigabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:,.3f} GB"
