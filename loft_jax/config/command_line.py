"""Read options and a validated `Config` from a command line, and turn the end of a command into its exit code.

Imports neither JAX nor NumPy: errors that can be found in the config alone are reported before they are loaded.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, NoReturn

from pydantic.fields import FieldInfo

from loft_jax.config.config import Config
from loft_jax.config.fields import MOST
from loft_jax.config.loading import Settings, apply_overrides, iterate_fields, read_config, type_name
from loft_jax.console import guarded_output
from loft_jax.errors import Preempted, RunStopped, UserError, did_you_mean, exit_code, format_value
from loft_jax.signals import act_on_ctrl_c


def run_command(
    main: Callable[[], None], interrupted: str = "interrupted", signs: Literal["stdout", "stderr"] = "stdout"
) -> None:
    """Run a command's main; turn an exception that stops it on purpose into one message and an exit code.

    2: bad input; 1: the run cannot continue; 0: a stop was requested, and the next start resumes; 130: Ctrl-C.

    Args:
      main: what to run.
      interrupted: the message after Ctrl-C.
      signs: where signs of life go (`guarded_output`).
    """
    with guarded_output(signs) as output:
        _run(main, interrupted)
        if output.lost:
            print(f"error: what was printed is lost, because stdout cannot be written ({output.lost})", file=sys.stderr)
            sys.exit(1)


def _run(main: Callable[[], None], interrupted: str) -> None:
    try:
        with act_on_ctrl_c(interrupted):
            main()
            sys.stdout.flush()
    except Preempted as stop:
        print(stop, flush=True)
        if code := exit_code(stop):
            sys.exit(code)
    except (UserError, RunStopped) as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(exit_code(stop))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        if not str(error).startswith("Unable to initialize backend"):
            raise
        platforms, reason = os.environ.get("JAX_PLATFORMS", "not set"), str(error).split("\n")[0]
        print(f"error: JAX finds no device to run on (JAX_PLATFORMS is {platforms}): {reason}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The program that reads our output has ended. Otherwise Python would report this again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


_FILE = (
    "YAML file of settings, or the name of a packaged config (digits, ...); settings that are not in it have their "
    "defaults"
)


class CommandLine(Generic[Settings]):
    """An argument parser with a dotted option for every field of the settings; a command adds its own options to it.

    The options override the settings in `--config FILE`. With `reads_run` the command takes one or several run
    directories, RUN, instead of that file; otherwise `file` says in the help what it holds.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        settings: type[Settings] = Config,
        *,
        reads_run: Literal["one", "several"] | None = None,
        file: str = _FILE,
    ):
        self._settings = settings
        self.parser = Parser(prog, description)
        if reads_run:
            nargs = "+" if reads_run == "several" else None
            self.parser.add_argument("run", metavar="RUN", nargs=nargs, help="run directory of loft_jax.train")
        else:
            self.parser.add_argument("--config", metavar="FILE", help=file)
        self._fields = dict(iterate_fields(settings))
        overridden = "that of the run" if reads_run else "that in the file"
        group = self.parser.add_argument_group(f"settings (each overrides {overridden})")
        for key, field in self._fields.items():
            # A section with a field `mode` has a short option: --distributed means --distributed.mode.
            short = [f"--{key.removesuffix('.mode')}"] if key.endswith(".mode") else []
            names = [f"--{key}", *short]
            group.add_argument(*names, metavar=type_name(field), help=_help(field), default=argparse.SUPPRESS, dest=key)

    def parse(self, argv: list[str] | None = None) -> tuple[argparse.Namespace, Settings]:
        """Return the command's own options, and the config. Raises UserError."""
        arguments, given = self.parse_overrides(argv)
        settings = {} if arguments.config is None else read_config(arguments.config)
        source = arguments.config or "command line"
        return arguments, apply_overrides(settings, given, source, self._settings)

    def parse_overrides(self, argv: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
        """Return the command's own options, and the text given for each dotted key. Raises UserError."""
        arguments = self.parser.parse_args(argv)
        return arguments, {key: value for key, value in vars(arguments).items() if key in self._fields}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError with one message, and does not print its usage."""

    def __init__(self, prog: str, description: str):
        formatter = argparse.RawTextHelpFormatter
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=formatter)
        # As in Python 3.14: "-1e-3" is a value, not an option.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Return the options. Raises UserError; if an option is unknown, the message names the nearest one."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UserError(self._unknown_argument(unknown[0]))
        return arguments

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    def _unknown_argument(self, argument: str) -> str:
        name = argument.split("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        if not name.startswith("-"):
            return f"argument {argument!r} is not expected here; options start with --, see --help"
        return f"unknown option {format_value(name)}{did_you_mean(name, known)}; see --help"


def whole_number(least: int, most: int = MOST) -> Callable[[str], int]:
    """Make an argparse type: an integer of at least `least` and at most `most`."""

    def parse(text: str) -> int:
        # int() would accept underscores, and the digits of other scripts.
        number = int(text) if re.fullmatch(r"\+?[0-9]{1,99}", text) else None
        if number is not None and least <= number <= most:
            return number
        too_large = number is not None and number > most
        limit = f" and at most {most}" if too_large or most < MOST else ""
        rule = f"must be a whole number of at least {least}{limit}"
        raise argparse.ArgumentTypeError(f"{format_value(text)}: {rule}; try {most if too_large else least}")

    return parse


def _help(field: FieldInfo) -> str:
    default = "null" if field.default is None else field.default
    return f"{field.description} (default: {default})".replace("%", "%%")
