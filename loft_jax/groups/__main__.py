"""The filter groups of a network, and why the rest is left whole: python -m loft_jax.groups --config C

Prints every layer in network order: its filters; whether they can be split ("inner": one layer computes them and others
read them), are the width of a stream that several layers add to, or are left whole and why; the parameters that lie on
them and the FLOPs of an image that compute or read them; and the variables that they touch, with the axis. Networks of
the package that declare their groups are traced too. Nothing is computed.

--figure FILE   also draws the network with its groups, as SVG
"""

from pathlib import Path

from loft_jax.config import CommandLine, Config, path_name, run_command
from loft_jax.errors import UserError, format_value, path_problem
from loft_jax.files import write_atomically

# Modules that import JAX are imported where they are needed: a typo is reported before JAX is loaded.


def main() -> None:
    command = CommandLine("python -m loft_jax.groups", __doc__)
    command.parser.add_argument(
        "--figure", metavar="FILE", type=path_name, help="draw the network with its groups into this SVG file"
    )
    arguments, config = command.parse()
    check_figure(arguments.figure)
    run(config, arguments.figure)


def check_figure(name: str | None) -> None:
    """Raise UserError if no SVG file of this name can be written."""
    if name is None:
        return
    if problem := path_problem(name):
        raise UserError(f"--figure {format_value(name)}: {problem}")
    if Path(name).suffix != ".svg":
        raise UserError(f"--figure {format_value(name)}: must end in .svg; try {Path(name).with_suffix('.svg')}")
    if not Path(name).absolute().parent.is_dir():
        raise UserError(f"--figure {format_value(name)}: its directory does not exist; create it")


def run(config: Config, figure: str | None) -> None:
    """Print the groups of the config's network, and draw them if asked for."""
    from loft_jax.data import dataset_facts
    from loft_jax.devices import configure_jax
    from loft_jax.groups.figure import draw
    from loft_jax.models import explain, make_model

    configure_jax(config)
    facts = dataset_facts(config)
    explanation = explain(make_model(config, facts.num_classes, facts.image_shape), facts.image_shape)
    print(f"network   {config.model.name} on {config.data.name}, {'x'.join(map(str, facts.image_shape))}\n")
    print(explanation)
    if figure is not None:
        write_atomically(Path(figure), draw(explanation, config.model.name))
        print(f"figure    {figure}")


if __name__ == "__main__":
    run_command(main)
