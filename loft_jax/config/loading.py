"""Make a validated `Config` from a YAML file and overrides, or one message that says what to change.

Imports neither JAX nor NumPy: errors that can be found in the config alone are reported before they are loaded.
"""

import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from loft_jax.config.config import Config, expand_short_form
from loft_jax.config.fields import Section
from loft_jax.config.model import options_hint
from loft_jax.config.strict_yaml import parse_yaml
from loft_jax.errors import UserError, did_you_mean, format_literal, format_value, path_problem

Settings = TypeVar("Settings", bound=Section)


def apply_overrides(
    settings: dict[str, Any], given: dict[str, str], source: str, model: type[Settings] = Config
) -> Settings:
    """Make the config from nested settings, overridden by the text given for dotted keys. Raises UserError."""
    settings = expand_short_form(settings)
    for key, value in given.items():
        _override(settings, key, yaml_scalar(value))
    return validate_settings(settings, source, model, given)


def validate_settings(
    settings: dict[str, Any], source: str, model: type[Settings] = Config, overrides: Container[str] = ()
) -> Settings:
    """Make the config from nested settings.

    Args:
      settings: nested keys and values.
      source: where they come from, for messages.
      model: the class of the config.
      overrides: dotted keys of those that come from the command line instead.

    Raises:
      UserError: the message names each wrong key, where it comes from, its value, the rule and what to use.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        messages = []
        for problem in error.errors():
            key = _dotted_key(problem, model)
            messages.append(f"{'command line' if key in overrides else source}: {_explain(problem, key, model)}")
        raise UserError("\n       ".join(messages)) from None


def read_config(name: str, folder: str = "") -> dict[str, Any]:
    """Read the settings that `--config` names: a packaged config if one has this name, otherwise a YAML file.

    Args:
      name: what was given.
      folder: that of the packaged configs, inside the one of the configs of runs.

    Raises:
      UserError: it is neither, does not parse or is no mapping.
    """
    name, packaged = os.path.expanduser(name), packaged_configs(folder)
    if name in packaged:
        return read_yaml(packaged[name], f"--config {name}")
    if Path(name).name == name and not Path(name).suffix and not path_problem(name) and not Path(name).exists():
        beside = did_you_mean(name, [path.name for path in Path().glob("[!.]*.yaml") if path.stem == name])
        hint = beside or did_you_mean(name, packaged, f"packaged are {', '.join(packaged)}")
        raise UserError(f"--config {format_value(name)}: neither a file nor a packaged config{hint}")
    stem = "" if path_problem(name) or Path(name).exists() else Path(name).stem
    if stem in packaged:
        raise UserError(
            f"--config {format_value(name)}: no such file; did you mean the packaged config, --config {stem}?"
        )
    if stem and not path_problem(name) and not _nearest_file(Path(name)) and (near := did_you_mean(stem, packaged)):
        raise UserError(f"--config {format_value(name)}: no such file{near}")
    return read_yaml(name)


def packaged_configs(folder: str = "") -> dict[str, Path]:
    """Return the file of every config that comes with the package, by its name; those of runs, or of a folder."""
    package = Path(__file__).parents[1]
    # In a clone they are beside the package, in a wheel inside it.
    inside = package / "configs"
    place = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted((place / folder).glob("*.yaml"))}


def read_yaml(path: str | Path, label: str | None = None) -> dict[str, Any]:
    """Read the mapping in a YAML file; `label` names the file in messages.

    Raises:
      UserError: it is missing, does not parse or is no mapping.
    """
    label = label or f"--config {format_value(str(path))}"
    if problem := path_problem(str(path)):
        raise UserError(f"{label}: {problem}; use the name of a YAML file")
    try:
        settings = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{label}: no such file{_nearest_file(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{label}: cannot be read ({error})") from None
    except ValueError as error:
        raise UserError(f"{label}: is not valid YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"{label}: must be a mapping of keys to values, not a {type(settings).__name__}")
    return _nest(settings, label)


def _nest(settings: dict[str, Any], label: str) -> dict[str, Any]:
    """Put dotted keys into their sections: loft.workers: 2. Raises UserError if a key is given in both forms."""
    nested = {key: value for key, value in settings.items() if not (isinstance(key, str) and "." in key)}
    for key in [key for key in settings if key not in nested]:
        section, _, leaf = key.partition(".")
        inside = nested.get(section)
        if inside is not None and (not isinstance(inside, dict) or leaf in inside):
            raise UserError(f"{label}: {format_value(key)}: is given twice, also under {section}; give it once")
        nested[section] = {**(inside or {}), leaf: settings[key]}
    return nested


def yaml_scalar(text: str) -> Any:
    """Convert the text of an override: `null`, `true` and `false` as YAML does; pydantic converts numbers."""
    return {"null": None, "true": True, "false": False}.get(text.lower(), text)


def iterate_fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key and the field of every setting in a section and in the sections inside it."""
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from iterate_fields(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key, field


def type_name(field: FieldInfo) -> str:
    """Return a field's type for help texts: its choices, or int, float, bool, str; and null if that is allowed."""
    return "|".join(_type_names(field.annotation))


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


def _override(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        if settings.get(section) is None:
            settings[section] = {}
        settings = settings[section]
        if not isinstance(settings, dict):
            raise UserError(f"{section}={settings!r}: must be a mapping of keys to values")
    settings[leaf] = value


def _dotted_key(error: ErrorDetails, model: type[Section]) -> str:
    """Return the dotted key that an error is about; "" if it is about several keys together."""
    path, known = [str(part) for part in error["loc"]], dict(iterate_fields(model))
    # If the field is a union, pydantic appends the member that failed, which is not part of the key.
    while len(path) > 1 and ".".join(path) not in known and ".".join(path[:-1]) in known:
        path.pop()
    return ".".join(path)


def _explain(error: ErrorDetails, key: str, model: type[Section]) -> str:
    fields, value = dict(iterate_fields(model)), error["input"]
    match error["type"]:
        case "extra_forbidden":
            siblings = [k for k in fields if k.rpartition(".")[0] == key.rpartition(".")[0]] or list(model.model_fields)
            top = list(model.model_fields) if "." not in key else []
            # The right name in the wrong section, before similar names.
            elsewhere = [k for k in fields if k.rpartition(".")[2] == key.rpartition(".")[2]]
            near = options_hint(key) or did_you_mean(key, elsewhere or [*siblings, *top, *fields])
            return f"unknown key {format_value(key)}{near}; see --help"
        case "invalid_key":
            return f"unknown key {format_value(key)}: keys are text; see --help"
        case "literal_error":
            choices = type_name(fields[key]).split("|")
            return (
                f"{key}={format_value(value)}: must be one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
            )
        case "model_type":
            return (
                f"{key}={format_literal(value)}: must be a mapping of keys to values; leave {key} out for its defaults"
            )
        case "value_error":
            rule = str(error["ctx"]["error"])
            return f"{key}={format_value(value)}: {rule}" if key else rule
        case "string_type":
            return f"{key}={format_literal(value)}: must be text; put it in quotes"
    rule = error["msg"][0].lower() + error["msg"][1:].replace("Input should", "should")
    rule = rule.replace("input should", "must")
    return f"{key}={format_literal(value)}: {rule}{_nearest_bound(error)}"


def _nearest_bound(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    for bound in ("ge", "le"):
        if bound in context:
            return f"; try {context[bound]}"
    return ""


def _nearest_file(path: Path) -> str:
    siblings = path.parent.glob("[!.]*.yaml") if path.parent.is_dir() else ()
    # Not alike by folder and suffix alone.
    return did_you_mean(str(path), [str(p) for p in siblings if did_you_mean(path.stem, [p.stem])])
