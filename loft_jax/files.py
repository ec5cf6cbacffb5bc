"""Functions that write a file completely or not at all. Imports neither JAX nor NumPy."""

import contextlib
import csv
import io
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loft_jax.errors import RunStopped, UserError

Row = dict[str, Any]


@contextmanager
def stop_on_write_error(path: Path) -> Generator[None]:
    """Turn an operating system's error in writing a file into RunStopped, which says what to do."""
    try:
        yield
    except OSError as error:
        raise RunStopped(
            f"{path}: cannot be written ({error.strerror}); what was saved before is unchanged. Free some space, or "
            "make the path writable, then run the same command again to resume"
        ) from error


def ensure_writable(directory: Path, label: str) -> None:
    """Make a directory if it is missing, and check that files can be written there.

    Raises:
      UserError: they cannot be written; `label` says in the message what the directory is.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{label} {directory}: cannot be written ({error.strerror}); use another") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all, replacing an existing one. Raises RunStopped if it cannot be written."""
    # The name contains the process id, because two retrainings of one run may collect their results at the same time.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with stop_on_write_error(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV, completely or not at all; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def cache_directory() -> Path:
    """Return the cache directory: $LOFT_JAX_CACHE, or ~/.cache/loft_jax."""
    return Path(os.environ.get("LOFT_JAX_CACHE") or "~/.cache/loft_jax").expanduser()


def cache_array(path: Path, array: Any) -> None:
    """Write a NumPy array to a file of the cache, completely or not at all; if that fails, warn and continue."""
    import numpy as np

    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        logging.getLogger(__name__).warning("%s is not cached: %s", path.name, error)
