"""Read options and a validated `Config` from a command line, and turn the end of a command into its exit code.

Imports neither JAX nor NumPy: errors that can be found in the config alone are reported before they are loaded.
"""

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, NoReturn

from pydantic.fields import FieldInfo

from loft_jax.config.config import Config
from loft_jax.config.fields import MOST
from loft_jax.config.loading import Settings, apply_overrides, iterate_fields, read_config, type_name
from loft_jax.config.model import options_hint
from loft_jax.console import guarded_output
from loft_jax.errors import Preempted, RunStopped, UserError, did_you_mean, exit_code, format_value, no_device
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
    # No figure needs a window; matplotlib cannot be imported if the user's back end is not there.
    os.environ["MPLBACKEND"] = "agg"
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
    except (RuntimeError, AssertionError) as error:
        # JAX asserts that it has a device where its plug-in is not installed.
        if not str(error).startswith("Unable to initialize backend") and not _lacks_devices():
            raise
        print(f"error: {no_device(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The program that reads our output has ended. Otherwise Python would report this again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _lacks_devices() -> bool:
    """Whether JAX has been loaded and has no device."""
    jax = sys.modules.get("jax")
    try:
        return jax is not None and not jax.devices()
    except (RuntimeError, AssertionError):
        return True


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
            self.parser.add_argument(
                "run", metavar="RUN", type=path_name, nargs=nargs, help="run directory of loft_jax.train"
            )
        else:
            self.parser.add_argument("--config", metavar="FILE", type=path_name, help=file)
        self._fields = dict(iterate_fields(settings))
        overridden = "that of the run" if reads_run else "that in the file"
        rule = f"(each overrides {overridden})"
        for key, field in self._fields.items():
            section = key.rpartition(".")[0] or RUN
            group = self.parser.sections.get(section) or self.parser.add_section(section, f"settings, {section} {rule}")
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


RUN, ALL = "run", "all"  # sections of --help: settings without a section, and every section
_WIDTH, _LINES, _ROOM = 80, 60, 12


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError with one message, and does not print its usage.

    `--help` shows the command's own options, and `--help SECTION` the settings of a section.

    Attributes:
      sections: name -> group of the options that only `--help NAME` shows.
    """

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, formatter_class=_Formatter, add_help=False
        )
        self.sections: dict[str, argparse._ArgumentGroup] = {}
        self.add_argument(
            "-h", "--help", action=_Help, metavar="SECTION", nargs="?", help="this; or a section of options"
        )
        # As in Python 3.14: "-1e-3" is a value, not an option.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def add_section(self, name: str, title: str) -> argparse._ArgumentGroup:
        """Add a group of options that `--help` names and `--help NAME` shows."""
        self.sections[name] = self.add_argument_group(title)
        return self.sections[name]

    def format_usage(self) -> str:
        """Return one line: the command, its positional arguments, and that there are options."""
        names = [_shown(action) for action in self._actions if not action.option_strings]
        return f"usage: {' '.join([self.prog, *names, '[options]'])}\n"

    def format_help(self, section: str | None = None) -> str:
        """Return the help: of the command's own options, of one section, or of everything (`ALL`)."""
        formatter = self._get_formatter()
        if section in (None, ALL):
            formatter.add_text(self.description if section == ALL else self._beginning())
        hidden = list(self.sections.values())
        for group in self._action_groups:
            name = next((name for name, each in self.sections.items() if each is group), None)
            if section == ALL or name == section or (section is None and group not in hidden):
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        if section == ALL or (section is None and not self.sections):
            formatter.add_text(self.epilog)
        text = self.format_usage() + "\n" + formatter.format_help()
        if not self.sections or section is not None:
            return text
        lists = [f"{text}\n{self._list_sections(keys=keys)}\n" for keys in (True, False)]
        return lists[0] if lists[0].count("\n") < _LINES else lists[1]

    def _beginning(self) -> str:
        """Return the first paragraphs of the description, as many as have room; at least one."""
        paragraphs, lines = (self.description or "").strip().split("\n\n"), 0
        for number, paragraph in enumerate(paragraphs):
            lines += len(_wrap(paragraph, _WIDTH - 1).splitlines()) + 1
            if number and lines > _ROOM:
                return "\n\n".join([*paragraphs[:number], "(--help all goes on)"])
        return "\n\n".join(paragraphs)

    def _list_sections(self, *, keys: bool) -> str:
        lines = ["more options: --help SECTION explains those of a section, --help all everything"]
        if not keys:
            return "\n".join([*lines, *textwrap.wrap(", ".join(self.sections), _WIDTH - 3)])
        for name, group in self.sections.items():
            listed = ", ".join(action.dest.removeprefix(f"{name}.") for action in group._group_actions)
            pad = " " * 15
            lines += textwrap.wrap(listed, _WIDTH - 1, initial_indent=f"  {name:<12} ", subsequent_indent=pad)
        return "\n".join(lines)

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
        near = options_hint(name.removeprefix("--")) or did_you_mean(name, known)
        return f"unknown option {format_value(name)}{near}; see --help"


def path_name(text: str) -> str:
    """Parse the name of a file or directory: ~ is the user's home; an argparse type, of every option that is a path."""
    return os.path.expanduser(text)


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


class _Help(argparse.Action):
    """Prints the help, or that of the section that is named, and ends the program."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        known = (*parser.sections, ALL)
        if values is not None and values not in known:
            there = f"there are {', '.join(known)}"
            raise UserError(f"--help {format_value(values)}: no such section{did_you_mean(values, known, there)}")
        print(parser.format_help(values), end="")
        parser.exit()


class _Formatter(argparse.HelpFormatter):
    """Keeps the lines of a text, and goes on in a new line, as far in, where one is too long."""

    def __init__(self, prog: str):
        width = min(_WIDTH, shutil.get_terminal_size().columns)
        super().__init__(prog, max_help_position=24, width=width - 1)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [_join(paragraph).splitlines() for paragraph in text.strip("\n").split("\n\n")]
        return "\n\n".join("\n".join(_wrap(line, width) for line in lines) for lines in paragraphs)


def _join(paragraph: str) -> str:
    """Make one line of a paragraph of sentences; a list, whose lines are indented or have columns, stays as it is."""
    return paragraph if "  " in paragraph or "\n " in paragraph else " ".join(paragraph.split("\n"))


def _wrap(line: str, width: int) -> str:
    """Break a line that is too long; the rest begins where its second column does, if there is one."""
    column = re.match(r" *(\S+( \S+)*)? {2,}(?=\S)", line)
    inside = " " * (len(column[0]) if column and column[1] else len(line) - len(line.lstrip()))
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=inside, drop_whitespace=True) or [""])


def _shown(action: argparse.Action) -> str:
    """Show a positional argument in a usage."""
    name = str(action.metavar or action.dest.upper())
    return f"{name} [{name} ...]" if action.nargs == "+" else name
