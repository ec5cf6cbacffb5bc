"""What numbers are sent as: rows of float32 as messages of bytes, and back (`loft.wire`).

A row has all numbers of one filter in one variable. In int8 it is sent as whole numbers from -127 to 127 and their
scale. Rows of a single number, as norms and biases have, are sent as they are: a scale would take as many bytes.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import jax
import jax.numpy as jnp

BYTES_OF_FLOAT = 4
_LARGEST = 127.0
_WHOLE = "second_moment/"


class Wire:
    """Encodes rows for one kind of message.

    Attributes:
      exact: whether messages are the float32 numbers themselves.
    """

    def __init__(self, kind: Literal["float32", "bfloat16", "int8"]):
        self._kind, self.exact = kind, kind == "float32"

    def rounds(self, path: str, size: int) -> bool:
        """Whether rows of so many numbers, of the variable at this path, are sent with fewer bits than they have.

        Second moments are not: a negative one, which a correction could make of it, has no root.
        """
        return not self.exact and size > 1 and not path.startswith(_WHOLE)

    def message_bytes(self, path: str, size: int) -> int:
        """Return the bytes of a row of so many numbers, its scale included."""
        if not self.rounds(path, size):
            return BYTES_OF_FLOAT * size
        return 2 * size if self._kind == "bfloat16" else size + BYTES_OF_FLOAT

    def message_length(self, path: str, size: int) -> int:
        """Return the last axis of the messages that `encode` makes of rows of so many numbers."""
        return size if self.exact else self.message_bytes(path, size)

    def encode(self, path: str, rows: jax.Array) -> jax.Array:
        """Return rows, float32 [..., size], as messages: uint8 [..., bytes]; with `exact` the rows themselves."""
        if self.exact:
            return rows
        if not self.rounds(path, rows.shape[-1]):
            return _to_bytes(rows)
        if self._kind == "bfloat16":
            return _to_bytes(rows.astype(jnp.bfloat16))
        scales = jnp.abs(rows).max(axis=-1, keepdims=True) / _LARGEST
        codes = jnp.round(rows / jnp.where(scales > 0, scales, 1)).astype(jnp.int8)
        return jnp.concatenate([_to_bytes(codes), _to_bytes(scales)], axis=-1)

    def decode(self, path: str, messages: jax.Array, size: int) -> jax.Array:
        """Return rows of so many numbers from their messages: what `encode` was given, but for its rounding."""
        if self.exact:
            return messages
        if not self.rounds(path, size):
            return _from_bytes(messages, jnp.float32)
        if self._kind == "bfloat16":
            return _from_bytes(messages, jnp.bfloat16).astype(jnp.float32)
        codes, scales = messages[..., :size], messages[..., size:]
        return _from_bytes(codes, jnp.int8).astype(jnp.float32) * _from_bytes(scales, jnp.float32)


def split_last(array: jax.Array, lengths: Sequence[int]) -> list[jax.Array]:
    """Split the last axis into parts of these lengths: the inverse of a concatenation."""
    return jnp.split(array, list(accumulate(lengths))[:-1], axis=-1)


def rows_of(variable: jax.Array, axis: int) -> jax.Array:
    """Return a variable as [n, size]: one row for each filter along this axis."""
    return jnp.moveaxis(variable, axis, 0).reshape(variable.shape[axis], -1)


def from_rows(rows: jax.Array, axis: int, shape: Sequence[int]) -> jax.Array:
    """Invert `rows_of`, for a variable of this shape, of which there may be fewer filters."""
    others = [length for other, length in enumerate(shape) if other != axis]
    return jnp.moveaxis(rows.reshape(-1, *others), 0, axis)


def _to_bytes(rows: jax.Array) -> jax.Array:
    found = jax.lax.bitcast_convert_type(rows, jnp.uint8)
    return found.reshape(*rows.shape[:-1], -1)


def _from_bytes(messages: jax.Array, dtype: jnp.dtype) -> jax.Array:
    width = jnp.dtype(dtype).itemsize
    grouped = messages if width == 1 else messages.reshape(*messages.shape[:-1], -1, width)
    return jax.lax.bitcast_convert_type(grouped, dtype)
