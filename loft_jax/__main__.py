"""LoFT in JAX/Flax: filter-wise distributed pretraining of CNNs that finds lottery tickets.

python -m loft_jax                  lists the commands
python -m loft_jax COMMAND ...      runs one, as python -m loft_jax.COMMAND does
"""

import runpy
import sys
from importlib import import_module

from loft_jax import __version__
from loft_jax.config import Parser, run_command
from loft_jax.errors import UserError, did_you_mean, format_value

# In the order in which a study uses them.
COMMANDS = (
    *("train", "tickets", "retrain", "lottery", "report", "study"),
    *("groups", "distances", "cost", "plan", "theory", "bench"),
)


def main() -> None:
    """Run the command that the first argument names, or list all of them; the console script `loft-jax`."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        name = sys.argv.pop(1)
        sys.argv[0] = f"python -m loft_jax.{name}"
        runpy.run_module(f"loft_jax.{name}", run_name="__main__", alter_sys=True)
    else:
        run_command(_main)


def _main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name is not None and not name.startswith("-"):
        hint = did_you_mean(name, COMMANDS, f"there are {', '.join(COMMANDS)}")
        raise UserError(f"command {format_value(name)}: no such command{hint}")
    parser = Parser("python -m loft_jax", __doc__)
    parser.add_argument("--version", action="version", version=f"loft_jax {__version__}")
    parser.epilog = "commands:\n" + "\n".join(f"  {command:<9} {_summary(command)}" for command in COMMANDS)
    parser.parse_args()
    parser.print_help()


def _summary(command: str) -> str:
    """Say what a command does: the first line of its package's docstring, up to the colon."""
    return (import_module(f"loft_jax.{command}").__doc__ or "").partition(":")[0]


if __name__ == "__main__":
    main()
