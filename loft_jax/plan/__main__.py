"""Plan a run for hardware that is not there: python -m loft_jax.plan --config C --topology h100:8

Compiles the programs of a round ahead of time for the topology. No GPU, driver or TPU is needed, only its compiler:
pip install 'loft_jax[cuda12]' or 'loft_jax[tpu]'. Prints what the compiler knows: memory of a chip, bytes of every
collective, operations; and the time of a round, computed from the peak figures that the vendor states, with what bounds
it. A plan that does not fit is refused, with what to change.

--topology   h100:N, h200:N or a100:N, cards of one host, or h100:NxHOSTS, cards of several hosts; v4:AxBxC, v5e:AxB,
             v5p:AxBxC or v6e:AxB, a slice of TPU chips with these sides; or cpu:N, virtual devices, which have no
             stated figures
--kernels    also lists where the kernels and bytes of a local step go, by layer and function; with --format csv only
             these, a row for each kernel
"""

import argparse
import csv
import math
import sys

from loft_jax.config import CommandLine, run_command
from loft_jax.errors import UserError
from loft_jax.plan.topology import Topology

# Modules that import JAX are imported where they are needed: a typo is reported before JAX is loaded.

FIGURES = {
    "tflops": ("--peak_tflops", "peak compute of a chip at the config's precision, 1e12 operations a second"),
    "memory_gb": ("--memory_gb", "memory of a chip, 1e9 bytes"),
    "memory_gbps": ("--memory_gbps", "bandwidth of that memory, 1e9 bytes a second"),
    "link_gbps": ("--link_gbps", "bandwidth of all links of a chip together, one way, 1e9 bytes a second"),
    "network_gbps": (
        "--network_gbps",
        "bandwidth of a GPU to other hosts, one way, 1e9 bytes a second; a 400 Gb/s adapter has 50",
    ),
    "kernel_us": ("--kernel_us", "time to start a kernel on a GPU, microseconds"),
}
ROW = ("part", "name", "figure", "value")
DEFAULTS = {"--network_gbps": "that of NVIDIA's DGX hosts", "--kernel_us": "3"}


def main() -> None:
    command = CommandLine("python -m loft_jax.plan", __doc__)
    add = command.parser.add_argument
    add("--topology", metavar="T", help="hardware to plan for: h100:8, h100:8x2, v5e:4x4, cpu:8, ...")
    add("--kernels", action="store_true", help="list where the kernels and bytes of a local step go")
    add("--format", choices=("table", "csv"), default="table", help="output format (default: table)")
    for option, meaning in FIGURES.values():
        add(
            option,
            metavar="X",
            type=float,
            help=f"{meaning} (default: {DEFAULTS.get(option, 'what the vendor states')})",
        )
    options, config = command.parse()
    topology = check_options(options)
    figures = given_figures(options)
    chip = topology.chip.with_figures(**figures, tflops_float32=figures["tflops"])
    topology.check_compiler()

    from loft_jax.data import facts_to_compile_for
    from loft_jax.plan.kernel_tables import COLUMNS, as_kernel_rows, print_kernels, step_kernels
    from loft_jax.plan.plan import check_fits
    from loft_jax.plan.planner import make_plan, prepare
    from loft_jax.plan.tables import as_rows, print_plan

    prepare(config, topology)
    plan = make_plan(config, topology, *facts_to_compile_for(config), report, kernels=options.kernels)
    check_fits(plan, chip)
    kernels = step_kernels(plan) if options.kernels else []
    if options.format == "csv":
        header, rows = (COLUMNS, as_kernel_rows(kernels)) if kernels else (ROW, as_rows(plan, chip))
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
        return
    print_plan(plan, chip)
    if kernels:
        print_kernels(kernels)


def check_options(options: argparse.Namespace) -> Topology:
    """Return the topology. Raises UserError if the options are wrong by themselves."""
    if not options.config:
        raise UserError("give --config FILE for what to plan; see --help")
    if not options.topology:
        raise UserError("give --topology T for the hardware to plan for, such as h100:8, v5e:4x4 or cpu:4; see --help")
    for figure, (option, _) in FIGURES.items():
        value = given_figures(options)[figure]
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{option} {value}: must be a positive number; leave it out to use what the vendor states")
    topology = Topology.parse(options.topology)
    if options.kernel_us is not None and topology.platform != "cuda":
        raise UserError(f"--kernel_us {options.kernel_us}: kernels are counted for GPUs; leave it out")
    if options.network_gbps is not None and topology.hosts == 1:
        raise UserError(
            f"--network_gbps {options.network_gbps}: {topology.name} has no network between hosts; leave it out, or "
            "plan for several hosts, such as h100:8x2"
        )
    return topology


def given_figures(options: argparse.Namespace) -> dict[str, float | None]:
    """Return the peak figures that were given as options."""
    return {figure: getattr(options, option.removeprefix("--")) for figure, (option, _) in FIGURES.items()}


def report(name: str, done: int, count: int) -> None:
    """Print to stderr what is being compiled; a program for an accelerator can take minutes."""
    print(f"compiling {done + 1}/{count}: {name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main, signs="stderr")
