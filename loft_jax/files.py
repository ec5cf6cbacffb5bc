"""Files written whole or not at all. Imports neither JAX nor NumPy."""

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
    """What the system says against writing a file becomes RunStopped, which says what to do."""
    try:
        yield
    except OSError as error:
        raise RunStopped(
            f"{path}: cannot be written ({error.strerror}); what was saved before is as it was. Make room, or see that "
            "it can be written, and the same command goes on"
        ) from error


def ensure_writable(directory: Path, label: str) -> None:
    """Make a directory, and see that files can be written there.

    Raises:
      UserError: they cannot; `label` says what the directory is.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{label} {directory}: cannot be written ({error.strerror}); use another") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, replacing one that is there. Raises RunStopped if it cannot be written."""
    # The process is in the name, for two retrainings of one run may collect their results at once.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with stop_on_write_error(path):
        try:
            with open(aside, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV, whole or not at all; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def cache_directory() -> Path:
    """$LOFT_JAX_CACHE, or ~/.cache/loft_jax."""
    return Path(os.environ.get("LOFT_JAX_CACHE") or "~/.cache/loft_jax").expanduser()


def cache_array(path: Path, array: Any) -> None:
    """Write a NumPy array to a file of the cache, whole or not at all; where that fails, warn and go on without."""
    import numpy as np

    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            np.save(file, array)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        logging.getLogger(__name__).warning("%s is not cached: %s", path.name, error)
