"""A run's data.json: which data it is trained on, as `loft_jax.data.data_identity` says. No JAX, no NumPy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from loft_jax.storage.records import CHECKSUM, Count, Row, Schema, Text, read_object, write_object

_Side = Annotated[int, Field(ge=1, lt=2**31)]

_SCHEMA = Schema(
    needed={"name": Text},
    optional={
        "image_shape": Annotated[list[_Side], Field(min_length=1, max_length=3)],
        **dict.fromkeys(("classes", "training_images"), _Side),
        **dict.fromkeys(("test_images", "validation_images"), Count),
        **{"class_names": list[Text], "fingerprint": Text},
    },
)


def read_data(path: Path) -> Row | None:
    """Read what is known of the data; None where there is no file. Raises UnsoundError."""
    fields = read_object(path, _SCHEMA)
    return None if fields is None else {key: value for key, value in fields.items() if key != CHECKSUM}


def write_data(path: Path, identity: Mapping[str, Any]) -> None:
    """Write what is known of the data. Raises RunStopped if it cannot be written."""
    write_object(path, identity)
