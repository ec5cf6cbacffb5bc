"""Pages of the site that are not written by hand: every command with its options, and every setting.

They are made when the site is built, so they cannot differ from `--help`. Loads no JAX.
"""

import argparse
import os
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from loft_jax.__main__ import COMMANDS
from loft_jax.config import ALL, Config, Parser, Section, flatten

ROOT = Path(__file__).resolve().parents[1]
MOST = 2**31 - 1
TITLES = {
    "": "The run",
    "model": "The network",
    "data": "Images",
    "loft": "LoFT",
    "optimizer": "The optimizer",
    "train": "Length, evaluation, checkpoints, snapshots",
    "mesh": "Devices",
    "gpipe": "GPipe",
    "distributed": "Processes",
}


def on_config(config: Any) -> Any:
    """Put a page of each command into the navigation."""
    for entry in config.nav:
        for child in entry.get("Reference", []) if isinstance(entry, dict) else []:
            if isinstance(child, dict) and "Commands" in child:
                child["Commands"] += [{name: f"reference/commands/{name}.md"} for name in COMMANDS]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that the program writes."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Path in the documentation -> the Markdown of every page that the program writes."""
    commands = {f"reference/commands/{name}.md": command_page(name) for name in COMMANDS}
    return {
        "reference/commands/index.md": index_page(),
        **commands,
        "reference/settings.md": settings_page(),
        "project/changelog.md": of_the_repository("CHANGELOG.md"),
        "project/contributing.md": of_the_repository("CONTRIBUTING.md"),
    }


def of_the_repository(name: str) -> str:
    """A page beside README, with its links into docs/ as the site has them."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")


def parser_of(command: str) -> Parser:
    """The parser that a command's main makes."""
    with (
        mock.patch.object(Parser, "parse_args", lambda self, argv=None: _stop(self)),
        mock.patch.dict(os.environ, {"COLUMNS": "100"}),
    ):
        try:
            import_module(f"loft_jax.{command}.__main__").main()
        except _FoundError as found:
            return found.parser
    raise AssertionError(f"{command} makes no parser")


def index_page() -> str:
    """All commands, with what each does."""
    lines = [
        "# Commands",
        "",
        "A command runs as `python -m loft_jax.NAME`, or as `loft-jax NAME`. `python -m loft_jax` lists them.",
        "Options with a dot are [settings](../settings.md). Every command has `--help`.",
        "",
        "| command | what it does |",
        "|---|---|",
    ]
    for name in COMMANDS:
        summary = (import_module(f"loft_jax.{name}").__doc__ or "").partition(":")[0]
        lines.append(f"| [{name}]({name}.md) | {summary} |")
    return "\n".join([*lines, *_EXIT_CODES]) + "\n"


def command_page(name: str) -> str:
    """A command: what it does, its own options, and the whole of its help."""
    parser = parser_of(name)
    own = [a for a in parser._actions if not _is_setting(a) and a.dest != "help"]
    lines = [f"# {name}", "", "```text", parser.description.strip(), "```", ""]
    lines += ["## Its own options", "", "| option | value | meaning |", "|---|---|---|"]
    for action in own:
        label = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar or action.dest}`"
        lines.append(f"| {label} | {_value(action)} | {_cell(_help(action, parser))} |")
    settings, of_a_run = [action for action in parser._actions if _is_setting(action)], flatten(Config())
    if of_a_run.keys() <= {action.dest for action in settings}:
        lines += ["", "It also takes every [setting](../settings.md) as an option, as in `--loft.workers 2`."]
        settings = [action for action in settings if action.dest not in of_a_run]
    if settings:
        lines += ["", "## Its settings", "", "| setting | type | default and meaning |", "|---|---|---|"]
        lines += [f"| `{a.dest}` | {_choices(a.metavar)} | {_cell(_help(a, parser))} |" for a in settings]
    with mock.patch.dict(os.environ, {"COLUMNS": "100"}):
        text = parser.format_help(ALL).rstrip()
    lines += ["", '??? note "The whole of `--help all`"', "", "    ```text", textwrap.indent(text, "    "), "    ```"]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Every setting of a run, section by section."""
    lines = [
        "# Settings",
        "",
        "A config file holds the settings that differ from these defaults. A dotted option overrides the file:",
        "`--loft.workers 2`. [Methods and settings](../guides/settings.md) says which ones to change for what.",
    ]
    for title, prefix, section in _sections(Config):
        lines += ["", f"## {title}", "", "| setting | type | default | meaning |", "|---|---|---|---|"]
        properties = section.model_json_schema()["properties"]
        for key, field in section.model_fields.items():
            if _is_section(field.annotation):
                continue
            default = (
                "null"
                if field.default is None
                else str(field.default).lower()
                if isinstance(field.default, bool)
                else field.default
            )
            kind = _choices("|".join(_type_names(properties[key]))) + _bounds(properties[key])
            lines.append(f"| `{prefix}{key}` | {kind} | `{default}` | {_cell(field.description)} |")
    return "\n".join(lines) + "\n"


_EXIT_CODES = [
    "",
    "## Exit codes",
    "",
    "| code | meaning |",
    "|---|---|",
    "| 0 | done; or the run was asked to stop, and has saved its round |",
    "| 1 | the run cannot continue: the loss is no longer finite, the disk is full, another process died |",
    "| 2 | bad input: one message with the key, the value, the rule and the nearest valid choice |",
    "| 130 | Ctrl-C |",
]


class _FoundError(Exception):
    def __init__(self, parser: Parser):
        super().__init__()
        self.parser = parser


def _stop(parser: argparse.ArgumentParser) -> None:
    raise _FoundError(parser)


def _is_setting(action: argparse.Action) -> bool:
    return action.default is argparse.SUPPRESS and action.dest != "help"


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog}


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    names = action.choices or ([action.metavar or action.dest.upper()] if action.option_strings else ())
    return ", ".join(f"`{name}`" for name in names) + (", one or more" if action.nargs == "+" else "")


def _choices(metavar: Any) -> str:
    return ", ".join(f"`{name}`" for name in str(metavar).split("|"))


def _cell(text: Any) -> str:
    """Text as a cell of a table."""
    escaped = " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
    return escaped.replace("*", "\\*").replace("_", "\\_")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _sections(section: type[Section]) -> Iterator[tuple[str, str, type[Section]]]:
    yield TITLES[""], "", section
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield TITLES.get(name, name), f"{name}.", field.annotation


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("anyOf", [schema])


def _type_names(schema: dict[str, Any]) -> Iterator[str]:
    names = {"integer": "int", "number": "float", "boolean": "bool", "string": "text", "null": "null"}
    for alternative in _alternatives(schema):
        if "enum" in alternative:
            yield from map(str, alternative["enum"])
        else:
            yield names.get(alternative.get("type"), alternative.get("type", "any"))


def _bounds(schema: dict[str, Any]) -> str:
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    bounds = [
        f"{sign} {alternative[bound]:g}"
        for alternative in _alternatives(schema)
        for bound, sign in signs
        if bound in alternative and alternative[bound] < MOST
    ]
    return f" {', '.join(bounds)}".replace("<", "&lt;") if bounds else ""
