"""Functions that write a file completely or not at all. Imports neither JAX nor NumPy."""

import contextlib
import csv
import fcntl
import glob
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from loft_jax.errors import RunStopped, UserError

Row = dict[str, Any]

# End of the names of what is not complete yet.
ASIDE = ".tmp"


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
    with stop_on_write_error(path), replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Open a file aside, which takes the place of `path` when all of it is on disk; after an error it is removed.

    What processes that have died have left of such files is removed first.
    """
    clear_leftovers(path.parent, f".{glob.escape(path.name)}.*{ASIDE}")
    handle, aside = claim_new(path.parent, f".{path.name}.", ASIDE)
    try:
        with open(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(handle)
            os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


@contextmanager
def directory_aside(parent: Path, name: str) -> Generator[Path]:
    """Make a directory in `parent`, which may be missing, for what is moved elsewhere when it is complete.

    It is removed at the end. What processes that have died have left of such directories is removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(parent, f".{name}.*{ASIDE}")
    handle, path = claim_new(parent, f".{name}.", ASIDE, directory=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def claim_new(parent: Path, prefix: str, suffix: str = "", *, directory: bool = False) -> tuple[int, Path]:
    """Make a file, or a directory, of a name that is new on all hosts and in all containers that share the disk.

    Returns:
      A handle, and the path. As long as the handle is open, in this process, the file is no leftover to others.
    """
    while True:
        path = parent / f"{prefix}{uuid.uuid4().hex}{suffix}"
        if directory:
            path.mkdir()
        handle = os.open(path, os.O_RDONLY if directory else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # Some file systems have no locks: nothing is a leftover there.
            fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():
            return handle, path
        os.close(handle)  # Somebody took it for a leftover before it was locked.


def clear_leftovers(directory: Path, pattern: str) -> None:
    """Remove files and directories of this pattern that no process has claimed: those that made them have died."""
    for path in directory.glob(pattern):
        with contextlib.suppress(OSError):
            is_directory = path.is_dir()
            handle = os.open(path, os.O_RDONLY if is_directory else os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if is_directory else path.unlink()
            finally:
                os.close(handle)


def _sync_directory(path: Path) -> None:
    """Write to disk which names a directory has: without it, a file that was renamed may have its old name again."""
    with contextlib.suppress(OSError):  # Some file systems refuse it, and need it as little.
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put_aside(path: Path) -> Path:
    """Rename what cannot be read to NAME.damaged, in place of what has that name. Raises RunStopped on failure."""
    aside = path.with_name(f"{path.name}.damaged")
    with stop_on_write_error(aside):
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        elif os.path.lexists(aside):
            aside.unlink()
        path.rename(aside)
    return aside


def table_text(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """Return rows as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV, completely or not at all; None is an empty cell."""
    write_atomically(path, table_text(columns, rows))
