"""Metrics as TensorBoard events: a file beside the rows of metrics, without TensorFlow.

The format is TensorFlow's: records of a length, its checksum, the bytes of an Event message and their checksum
(tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto); checksums are masked CRC-32C.
"""

import struct
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from loft_jax.files import write_aside

PATTERN = "events.out.tfevents.*"
_VERSION = b"brain.Event:2"

Row = dict[str, Any]


def start_file(directory: Path, rows: Sequence[Row]) -> Path:
    """Write a new file of these rows' events, in place of those that are there. Returns its path, to append to."""
    before = list(directory.glob(PATTERN))
    # TensorBoard goes on with the file whose name comes last.
    path = directory / PATTERN.replace("*", f"{time.time_ns() // 1000:017d}.loft_jax")
    now = time.time()
    since = [sum(seconds for key, seconds in row.items() if key.startswith("seconds/")) for row in rows]
    events = (row_event(row, now - sum(since[i + 1 :])) for i, row in enumerate(rows))
    write_aside(path, _record(_double(1, now) + _bytes(3, _VERSION)) + b"".join(events))
    for other in before:
        other.unlink(missing_ok=True)
    return path


def row_event(row: Row, wall_time: float) -> bytes:
    """A row of metrics as one record: a scalar for each number but the round, which is the step.

    Args:
      wall_time: when it was measured, in seconds since 1970.
    """
    scalars = {key: value for key, value in row.items() if key != "round" and isinstance(value, int | float)}
    values = (_bytes(1, _bytes(1, key.encode()) + _float(2, value)) for key, value in scalars.items())
    return _record(_double(1, wall_time) + _varint(2, row["round"]) + _bytes(5, b"".join(values)))


def _record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + _checksum(length) + message + _checksum(message)


def _checksum(content: bytes) -> bytes:
    crc, table = 0xFFFFFFFF, _table()
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli), a byte at a time."""
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        entries.append(entry)
    return tuple(entries)


# Fields of protocol buffers: a key of number and wire type, then the value.


def _varint(field: int, value: int) -> bytes:
    return _base128(field << 3) + _base128(value)


def _double(field: int, value: float) -> bytes:
    return _base128(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _base128(field << 3 | 2) + _base128(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _base128(field << 3 | 5) + struct.pack("<f", value)


def _base128(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
