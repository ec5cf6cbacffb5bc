"""Plan a run for hardware that is not there: python -m loft_jax.plan --config C --topology v5e:4x4

The programs of a round are compiled ahead of time for the topology (for TPUs that takes libtpu, pip install
'.[tpu]', but no TPU), and what the compiler knows is printed: memory of a chip, bytes of every collective,
operations, and from the chip's stated peak figures the time of a round. A plan that does not fit is refused, with what
to change.

--topology   v4:AxBxC, v5e:AxB, v5p:AxBxC or v6e:AxB, a slice of TPU chips by its sides; or cpu:N, virtual devices, of
             which nothing is stated
"""

import argparse
import csv
import math
import sys

from loft_jax.config import CommandLine, run_command
from loft_jax.errors import UserError
from loft_jax.plan.topology import Topology

# What imports JAX is imported where it is needed: a typo is told before JAX is loaded.

FIGURES = {
    "tflops": ("--peak_tflops", "peak of a chip at the config's precision, 1e12 operations a second"),
    "memory_gb": ("--memory_gb", "memory of a chip, 1e9 bytes"),
    "memory_gbps": ("--memory_gbps", "bandwidth of that memory, 1e9 bytes a second"),
    "link_gbps": ("--link_gbps", "what a chip sends over all its links together, 1e9 bytes a second"),
}


def main() -> None:
    command = CommandLine("python -m loft_jax.plan", __doc__)
    add = command.parser.add_argument
    add("--topology", metavar="T", help="v5e:4x4, cpu:8, ...")
    add("--format", choices=("table", "csv"), default="table", help="(default: table)")
    for option, meaning in FIGURES.values():
        add(option, metavar="X", type=float, help=f"{meaning} (default: as the vendor states)")
    options, config = command.parse()
    topology = checked(options)
    chip = topology.chip.stated(**stated(options))

    from loft_jax.data import facts_to_compile_for
    from loft_jax.plan.plan import check_fits
    from loft_jax.plan.planner import make_plan, prepare
    from loft_jax.plan.tables import as_rows, print_plan

    prepare(config, topology)
    plan = make_plan(config, topology, *facts_to_compile_for(config), report)
    check_fits(plan, chip)
    if options.format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([("part", "name", "figure", "value"), *as_rows(plan, chip)])
    else:
        print_plan(plan, chip)


def checked(options: argparse.Namespace) -> Topology:
    """The topology. Raises UserError on what the options alone tell to be wrong."""
    if not options.config:
        raise UserError("give --config FILE for what to plan; see --help")
    if not options.topology:
        raise UserError("give --topology T for the hardware to plan for, such as v5e:4x4 or cpu:4; see --help")
    for figure, (option, _) in FIGURES.items():
        value = stated(options)[figure]
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{option} {value}: must be a positive number; leave it out for what the vendor states")
    return Topology.parse(options.topology)


def stated(options: argparse.Namespace) -> dict[str, float | None]:
    """The peak figures that were given."""
    return {figure: getattr(options, option.removeprefix("--")) for figure, (option, _) in FIGURES.items()}


def report(name: str, done: int, count: int) -> None:
    """Say on stderr what is compiled; for a TPU a program can take minutes."""
    print(f"compiling {done + 1}/{count}: {name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
