"""Files of weights from anywhere, read as numpy arrays by name: safetensors, npz, msgpack, Orbax, PyTorch.

Nothing that a file contains is ever run: no pickles, but for PyTorch's own reader of weights.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loft_jax.errors import UserError, did_you_mean, format_value, path_problem
from loft_jax.storage.services import error_reason

Arrays = dict[str, np.ndarray]

ORBAX = "a directory of Orbax"
_TORCH = "pip install torch (or 'loft_jax[torch]'), or save it as .safetensors"
_ORBAX_ITEMS = ("default", "state", "params", "pytree")
_LONGEST_HEADER = 100_000_000
_SAFETENSORS_TYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def read_array_file(path: Path, label: str) -> Arrays:
    """Read all arrays of a file of weights.

    Nested mappings become paths: {"params": {"conv1": {"kernel": ...}}} gives "params/conv1/kernel". Whatever is not an
    array of numbers is left out.

    Args:
      path: a file whose suffix says its format, or a directory that Orbax has written.
      label: what the messages begin with.

    Raises:
      UserError: there is no such file, its format is not known or cannot be read, or it holds no arrays.
    """
    _check_there(path, label)
    read = _read_orbax if path.is_dir() else _READERS[path.suffix.lower()]
    try:
        arrays = {name: array for name, array in read(path) if _is_number(array.dtype)}
    except UserError as error:
        raise UserError(f"{label}: {error}") from None
    except Exception as error:  # Libraries raise errors of any type for a damaged file.
        raise UserError(f"{label}: cannot be read as {_format_of(path)} ({error_reason(error)})") from error
    if not arrays:
        raise UserError(f"{label}: holds no arrays; give a file of weights")
    return arrays


def _check_there(path: Path, label: str) -> None:
    known = f"{', '.join(_READERS)} or {ORBAX}"
    if problem := path_problem(str(path)):
        raise UserError(f"{label}: {problem}; give a file of weights")
    if not path.exists():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{label}: no such file{did_you_mean(path.name, there)}")
    if not path.is_dir() and path.suffix.lower() not in _READERS:
        raise UserError(f"{label}: format {format_value(path.suffix)} is not known; give {known}")


def _format_of(path: Path) -> str:
    return ORBAX if path.is_dir() else path.suffix.lower()


def _read_safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    content = path.read_bytes()
    if len(content) < 8:
        raise UserError("is cut off: it has no header")
    (length,) = struct.unpack("<Q", content[:8])
    if length > min(len(content) - 8, _LONGEST_HEADER):
        raise UserError("is cut off, or no safetensors file: its header is longer than the file")
    header, data = json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(data):
            raise UserError(f"is cut off: {format_value(name)} ends behind the end of the file")
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise UserError(f"{format_value(name)} has the type {entry['dtype']}, which is not known")
        dtype = _dtype(_SAFETENSORS_TYPES[entry["dtype"]]).newbyteorder("<")
        yield _slashes(name), np.frombuffer(data[start:end], dtype).reshape(entry["shape"])


def _read_npz(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError("holds one array without a name; save the arrays with numpy.savez")
            for name in file.files:
                yield _slashes(name), file[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UserError("holds Python objects, which are not read; save arrays of numbers") from None
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"is damaged ({error})") from None


def _read_msgpack(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from flax.serialization import msgpack_restore

    yield from _leaves(msgpack_restore(path.read_bytes()))


def _read_orbax(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    import jax
    import orbax.checkpoint as ocp

    path = path.resolve()
    # A step of a CheckpointManager has what was saved in a folder below.
    inner = [p for p in (path, *(path / name for name in _ORBAX_ITEMS)) if (p / "_METADATA").exists()]
    if not inner:
        saved = sorted(p.parent for p in path.glob("*/*/*/_METADATA"))
        example = f"one of its states, {saved[-1]}" if saved else "the directory of one state"
        raise UserError(f"is a directory, and not one that Orbax has written; give {example}, or a file")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(inner[0]).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(tree))
        restored = reader.restore(inner[0], args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    yield from _leaves(restored)


def _read_torch(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import torch
    except ImportError:
        raise UserError(f"is a PyTorch file, and torch is not installed; {_TORCH}") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Also its own UnpicklingError, for a file that holds more than weights.
        raise UserError(
            f"torch cannot read it with weights_only=True ({error_reason(error)}); save model.state_dict() alone"
        ) from None
    yield from _leaves(loaded, lambda leaf: leaf.detach().to("cpu"))


def _leaves(tree: Any, prepare: Callable[[Any], Any] = lambda leaf: leaf) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every array of nested mappings and sequences, with its path."""
    stack = [("", tree)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, Mapping):
            children = [(str(key), value) for key, value in node.items()]
        elif isinstance(node, list | tuple):
            children = [(str(i), value) for i, value in enumerate(node)]
        elif hasattr(node, "shape") and hasattr(node, "dtype"):
            yield path, _as_numpy(prepare(node))
            continue
        else:
            continue
        stack += [(f"{path}/{_slashes(key)}".lstrip("/"), value) for key, value in reversed(children)]


def _as_numpy(leaf: Any) -> np.ndarray:
    if str(leaf.dtype) == "torch.bfloat16":
        leaf = leaf.float()
    return np.asarray(leaf)


def _slashes(name: str) -> str:
    """Return the path of a name that PyTorch joins by dots: "layer1.0.conv1.weight" -> "layer1/0/conv1/weight"."""
    return name if "/" in name else name.replace(".", "/")


def _is_number(dtype: np.dtype) -> bool:
    # bfloat16 and its like are no kind of NumPy's.
    return dtype.kind in "biuf" or dtype.type.__module__ == "ml_dtypes"


def _dtype(name: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, np.ndarray]]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".msgpack": _read_msgpack,
    ".pt": _read_torch,
    ".pth": _read_torch,
}
