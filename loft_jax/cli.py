"""From a command line and a YAML file to a validated `Config`, or to one message that says what to change.

Imports neither JAX nor NumPy: what the config alone can tell is told before they are loaded.
"""

import argparse
import difflib
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from loft_jax.config import Config, spelt_out
from loft_jax.errors import Preempted, RunStopped, UserError, exit_code
from loft_jax.sections import MOST, Section, path_problem


def run_command(main: Callable[[], None], interrupted: str = "interrupted") -> None:
    """Run a command's main; a deliberate stop becomes one message and an exit code.

    2: bad input; 1: the run cannot go on; 0: it was asked to leave, and goes on at the next start.
    """
    try:
        main()
    except Preempted as stop:
        print(stop, flush=True)
    except (UserError, RunStopped) as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(exit_code(stop))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


Settings = TypeVar("Settings", bound=Section)


class CommandLine(Generic[Settings]):
    """An argument parser with every field of the settings as a dotted option, and the options a command adds.

    The settings start from `--config FILE`; a command that `reads_run`, one or several, takes run directories instead,
    as RUN.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        settings: type[Settings] = Config,
        *,
        reads_run: Literal["one", "several"] | None = None,
    ):
        self._settings = settings
        self.parser = Parser(prog, description)
        if reads_run:
            nargs = "+" if reads_run == "several" else None
            self.parser.add_argument("run", metavar="RUN", nargs=nargs, help="run directory of loft_jax.train")
        else:
            self.parser.add_argument(
                "--config", metavar="FILE", help="YAML file of settings; what it leaves out is default"
            )
        self._fields = dict(_fields(settings))
        overrides = "the run's own" if reads_run else "the file"
        group = self.parser.add_argument_group(f"settings (each overrides {overrides})")
        for key, field in self._fields.items():
            # A section that may be given as one of its fields has a short option for it.
            short = [f"--{key.removesuffix('.mode')}"] if key.endswith(".mode") else []
            names = [f"--{key}", *short]
            group.add_argument(*names, metavar=type_name(field), help=_help(field), default=argparse.SUPPRESS, dest=key)

    def parse(self, argv: list[str] | None = None) -> tuple[argparse.Namespace, Settings]:
        """The command's own options, and the config. Raises UserError."""
        arguments, given = self.parse_overrides(argv)
        settings = {} if arguments.config is None else read_yaml(arguments.config)
        source = arguments.config or "command line"
        return arguments, overridden(settings, given, source, self._settings)

    def parse_overrides(self, argv: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
        """The command's own options, and the text given for each dotted key. Raises UserError."""
        arguments = self.parser.parse_args(argv)
        return arguments, {key: value for key, value in vars(arguments).items() if key in self._fields}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one message, as ours are, without the page of usage."""

    def __init__(self, prog: str, description: str):
        formatter = argparse.RawTextHelpFormatter
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=formatter)
        # As in Python 3.14: "-1e-3" is a value, not an option.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        """The options. Raises UserError, naming the nearest option where one is unknown."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            raise UserError(self._unknown_argument(unknown[0]))
        return arguments

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see --help")

    def _unknown_argument(self, argument: str) -> str:
        name = argument.split("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        if not name.startswith("-"):
            return f"argument {argument!r} is not expected here; options start with --, see --help"
        return f"unknown option {shown(name)}{_nearest(name, known)}; see --help"


def whole_number(least: int, most: int = MOST) -> Callable[[str], int]:
    """An argparse type: an integer of at least `least` and at most `most`."""

    def parse(text: str) -> int:
        # int() would take underscores, and digits of any script.
        number = int(text) if re.fullmatch(r"\+?[0-9]{1,99}", text) else None
        if number is not None and least <= number <= most:
            return number
        above = number is not None and number > most
        limit = f" and at most {most}" if above or most < MOST else ""
        rule = f"must be a whole number of at least {least}{limit}"
        raise argparse.ArgumentTypeError(f"{shown(text)}: {rule}; try {most if above else least}")

    return parse


def overridden(
    settings: dict[str, Any], given: dict[str, str], source: str, model: type[Settings] = Config
) -> Settings:
    """The config of nested settings and of the text given for dotted keys, which wins. Raises UserError."""
    settings = spelt_out(settings)
    for key, value in given.items():
        _override(settings, key, yaml_scalar(value))
    return validated(settings, source, model)


def validated(settings: dict[str, Any], source: str, model: type[Settings] = Config) -> Settings:
    """The config of nested settings. Raises UserError naming each wrong key, its value, the rule and what to use."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise UserError("\n       ".join(f"{source}: {_explain(e, model)}" for e in error.errors())) from None


def read_yaml(path: str | Path, label: str | None = None) -> dict[str, Any]:
    """The mapping in a YAML file; `label` names it in messages.

    Raises:
      UserError: it is missing, does not parse or is no mapping.
    """
    label = label or f"--config {shown(str(path))}"
    if problem := path_problem(str(path)):
        raise UserError(f"{label}: {problem}; use the name of a YAML file")
    try:
        settings = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{label}: no such file{_nearest_file(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{label}: cannot be read ({error})") from None
    except Exception as error:
        # Beside its own errors PyYAML raises a dozen others on dates, numbers and tags that cannot be.
        raise UserError(f"{label}: is not valid YAML: {' '.join(str(error).split())}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"{label}: must be a mapping of keys to values, not a {type(settings).__name__}")
    return settings


def yaml_scalar(text: str) -> Any:
    """An override's text, with `null`, `true` and `false` as YAML reads them; pydantic reads the numbers."""
    return {"null": None, "true": True, "false": False}.get(text.lower(), text)


def shown(value: Any) -> str:
    """A value in a message: on one line, not too long, and with quotes where one would not see where it ends."""
    if isinstance(value, str) and value.isprintable() and value == value.strip() != "" and len(value) <= _LONGEST:
        return value
    return _short.repr(value)


def type_name(field: FieldInfo) -> str:
    """A field's type for people: its choices, or int, float, bool, str, and null where it may be absent."""
    return "|".join(_type_names(field.annotation))


# YAML's anchors make values of a few lines whose text would fill the memory.
_LONGEST = 200
_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = _short.maxlong = _LONGEST


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader, but a key given twice is an error, not a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            # A merge key may repeat what it merges, and a key that is no scalar is refused by the base class.
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key, field


def _type_names(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if annotation in (int, float, bool, str):
        return [annotation.__name__]
    if annotation is type(None):
        return ["null"]
    # A union's members, or the first argument of Annotated.
    return [
        name
        for part in get_args(annotation)
        if isinstance(part, type) or get_origin(part)
        for name in _type_names(part)
    ]


def _help(field: FieldInfo) -> str:
    default = "null" if field.default is None else field.default
    return f"{field.description} (default: {default})".replace("%", "%%")


def _override(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        if settings.get(section) is None:
            settings[section] = {}
        settings = settings[section]
        if not isinstance(settings, dict):
            raise UserError(f"{section}={settings!r}: must be a mapping of keys to values")
    settings[leaf] = value


def _explain(error: dict[str, Any], model: type[Section]) -> str:
    path = [str(part) for part in error["loc"]]
    fields = dict(_fields(model))
    known = list(fields)
    # Behind a union pydantic appends the member that failed; the key ends where the config's fields end.
    while len(path) > 1 and ".".join(path) not in known and ".".join(path[:-1]) in known:
        path.pop()
    key, value = ".".join(path), error["input"]
    match error["type"]:
        case "extra_forbidden":
            siblings = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]] or list(model.model_fields)
            top = list(model.model_fields) if "." not in key else []
            return f"unknown key {shown(key)}{_nearest(key, siblings + top + known)}; see --help"
        case "invalid_key":
            return f"unknown key {shown(key)}: keys are text; see --help"
        case "literal_error":
            choices = type_name(fields[key]).split("|")
            return f"{key}={shown(value)}: must be one of {', '.join(choices)}{_nearest(str(value), choices)}"
        case "model_type":
            text = "null" if value is None else _short.repr(value)
            return f"{key}={text}: must be a mapping of keys to values; leave {key} out for its defaults"
        case "value_error":
            rule = str(error["ctx"]["error"])
            return f"{key}={shown(value)}: {rule}" if key else rule
        case "string_type":
            return f"{key}={_short.repr(value)}: must be text; put it in quotes"
    rule = error["msg"][0].lower() + error["msg"][1:].replace("Input should", "should")
    rule = rule.replace("input should", "must")
    return f"{key}={_short.repr(value)}: {rule}{_nearest_bound(error)}"


def _nearest_bound(error: dict[str, Any]) -> str:
    context = error.get("ctx", {})
    for bound in ("ge", "le"):
        if bound in context:
            return f"; try {context[bound]}"
    return ""


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        # A right key in the wrong section is closest in its last part.
        close = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f"; did you mean {close[0]}?" if close else ""


def _nearest_file(path: Path) -> str:
    siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return _nearest(str(path), siblings)
