"""Objects in JSON files, checked when they are read: what must be there, types, ranges, and a checksum of the values.

Imports neither JAX nor NumPy. A file without a checksum, as other programs and earlier versions write it, has its
values checked alone.
"""

import json
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from loft_jax.errors import format_literal
from loft_jax.files import put_aside, write_atomically

Row = dict[str, Any]

CHECKSUM = "checksum"

Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Text = Annotated[str, Field(max_length=10_000)]


class UnsoundError(Exception):
    """A file is there and is not what was written. The message names the file, and what is wrong with it."""


class Schema:
    """What the values of an object must be: by key, a type with its bounds; other keys may have any value.

    Args:
      needed: what is always there.
      optional: what may be missing, or null.
    """

    def __init__(self, needed: Mapping[str, Any], optional: Mapping[str, Any]):
        self._needed, self._optional = needed, optional

    @cached_property
    def _model(self) -> type[BaseModel]:
        # Keys have slashes, which names of fields cannot have.
        fields: dict[str, Any] = {f"needed{i}": (t, Field(alias=k)) for i, (k, t) in enumerate(self._needed.items())}
        fields |= {f"also{i}": (t | None, Field(None, alias=k)) for i, (k, t) in enumerate(self._optional.items())}
        return create_model("Object", __config__=ConfigDict(strict=True), **fields)

    def problem(self, fields: Mapping[str, Any]) -> str | None:
        """Say which value is wrong, and why; None if all are right."""
        try:
            self._model.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "missing":
                return f"{key} is missing"
            return f"{key}: {format_literal(first['input'])}: {first['msg'].replace('Input should', 'must')}"
        return None


def parse_object(text: str | bytes) -> Row:
    """Read an object from JSON. Raises ValueError if it is none, or holds NaN or an infinity."""
    try:
        fields = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"holds {format_literal(fields)}, and not an object")
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def checksum(fields: Mapping[str, Any], salt: str = "") -> int:
    """Compute a checksum of values by key: of numbers to six digits, so that it does not matter how they are printed.

    Nulls count as missing. `salt` says what the values belong to.
    """
    text = json.dumps(_canonical({k: v for k, v in fields.items() if k != CHECKSUM}), sort_keys=True)
    return zlib.crc32(f"{salt}{text}".encode())


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    if isinstance(value, float) and not value.is_integer():
        # No one sees more than six digits of it; an index or a seed has all of its own.
        return f"{value:.6g}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value))
    return value


def is_as_written(fields: Mapping[str, Any], salt: str = "") -> bool:
    """Whether an object has the checksum of its values, or none."""
    given = fields.get(CHECKSUM)
    return CHECKSUM not in fields or (given == checksum(fields, salt) and not isinstance(given, bool))


def read_object(path: Path, schema: Schema) -> Row | None:
    """Read the object in a file, with its checksum if it has one; None where there is no file.

    Raises:
      UnsoundError: it cannot be read, is no object of this schema, or has been changed since it was written.
    """
    try:
        fields = parse_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnsoundError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UnsoundError(f"{path}: {error}") from None
    if problem := schema.problem(fields):
        raise UnsoundError(f"{path}: {problem}")
    if not is_as_written(fields):
        raise UnsoundError(f"{path}: has been changed since it was written (its checksum does not match)")
    return fields


def write_object(path: Path, fields: Mapping[str, Any], indent: int | None = None) -> Row:
    """Write an object with its checksum, whole or not at all; what is there and is no file is put aside.

    Returns:
      The object as it is written. Raises RunStopped if it cannot be written.
    """
    written = {**fields, CHECKSUM: checksum(fields)}
    if path.is_dir():
        put_aside(path)
    write_atomically(path, json.dumps(written, indent=indent) + "\n")
    return written


def line_of(fields: Mapping[str, Any]) -> str:
    """Return an object with its checksum as a line of JSON."""
    return json.dumps({**fields, CHECKSUM: checksum(fields)}) + "\n"


def read_lines(path: Path, schema: Schema) -> tuple[list[Row], list[str]]:
    """Read a file of objects, one a line, without their checksums; no rows where there is no file.

    Returns:
      The sound rows, also those behind others, and what is wrong with the file or its other lines.
    """
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        return [], [f"{path}: cannot be read ({error.strerror})"]
    rows, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_read_line(line, schema))
        except ValueError as error:
            problems.append(f"{path}: line {number}: {error}")
    return rows, problems


def _read_line(line: bytes, schema: Schema) -> Row:
    """Read an object, without its checksum. Raises ValueError if it is not sound."""
    fields = parse_object(line)
    if problem := schema.problem(fields):
        raise ValueError(problem)
    if not is_as_written(fields):
        raise ValueError("has been changed since it was written (its checksum does not match)")
    return {key: value for key, value in fields.items() if key != CHECKSUM}
