"""The small files of a study: their schemas, read and written. What is damaged counts as missing, and is said."""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from loft_jax.files import Row
from loft_jax.storage import CHECKSUM, Count, NonNegative, Schema, Text, UnsoundError, read_object, write_object

DONE, FAILED, STOPPED = "done", "failed", "stopped"

_State = Literal["done", "failed", "stopped"]
RESULT = Schema(
    needed={},
    optional={
        **{"state": _State, "seconds": NonNegative, "exit_code": int, "rows": list[dict[str, Any]]},
        **dict.fromkeys(("job", "kind", "setting", "reason", "ended"), Text),
        **{"seed": Count, "identity": Any},
    },
)
CLOCK = Schema(needed={"began": NonNegative}, optional={"before": NonNegative})
LENGTHS = Schema(needed={"rounds": Annotated[int, Field(ge=1, lt=2**31)]}, optional={})

# A row of the bench; others of its values depend on the table.
SPEED_ROW = Schema(
    needed={"what": Text, "machine": dict[str, Any]},
    optional={**dict.fromkeys(("ratio", "least", "largest", "a", "b"), NonNegative), "pairs": Count, "unit": Text},
)


def read_record(path: Path, schema: Schema) -> Row:
    """Return the object in a file; {} if there is none, or a damaged one, which is said."""
    try:
        fields = read_object(path, schema) or {}
    except UnsoundError as error:
        warn(f"{error}; it counts as missing")
        return {}
    return {key: value for key, value in fields.items() if key != CHECKSUM}


@cache
def warn(text: str) -> None:
    """Say it once: the files are looked at again and again."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def write_record(path: Path, fields: Mapping[str, Any]) -> None:
    """Write an object. Raises RunStopped if it cannot be written."""
    write_object(path, fields)
