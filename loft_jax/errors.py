"""Exceptions by which a command stops on purpose; any other exception is a bug and keeps its traceback."""

import difflib
import os
import reprlib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """What the user asked for cannot be done; the message says what to change. Commands exit with code 2."""


class RunStopped(Exception):  # noqa: N818
    """The run cannot continue, because of something that happened while it ran. Commands exit with code 1."""


class Preempted(Exception):  # noqa: N818
    """A stop was requested, and the run has saved its state; run the same command again to resume. Exit code 0."""


class Interrupted(Preempted):
    """As `Preempted`, by Ctrl-C. Exit code 130, at which a shell ends a loop too."""


def exit_code(stop: Exception) -> int:
    """Return the exit code of a command that this exception has stopped."""
    codes: dict[type[Exception], int] = {UserError: 2, RunStopped: 1, Preempted: 0, Interrupted: 130}
    return codes[type(stop)]


# With YAML's anchors a file of a few lines can hold a value whose full text would fill the memory.
_LONGEST = 200
_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = _short.maxlong = _LONGEST


def format_value(value: Any) -> str:
    """Format a value for a message: on one line, not too long, and in quotes if its end would not be visible."""
    if isinstance(value, str) and value.isprintable() and value == value.strip() != "" and len(value) <= _LONGEST:
        return value
    return format_literal(value)


def format_literal(value: Any) -> str:
    """Format a value as Python writes it, shortened if it is long or deep; None and booleans as YAML writes them."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return _short.repr(value)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a message about an unknown name: the nearest known name, or `otherwise` if none is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        # A key that is right but in the wrong section: compare the last parts.
        close = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    hint = f"did you mean {close[0]}?" if close else otherwise
    return f"; {hint}" if hint else ""


def no_device(error: Exception) -> str:
    """Say that JAX has no device, by the error that it raised."""
    platforms = os.environ.get("JAX_PLATFORMS", "not set")
    reason = str(error).split("\n")[0] or "none of them is here, or its plug-in is not installed; unset it, or try cpu"
    return f"JAX finds no device to run on (JAX_PLATFORMS is {platforms}): {reason}"


def offer(command: str, *words: str | Path) -> str:
    """Return a command of this package as it can be pasted into a shell, whatever is in its paths.

    Args:
      command: its name, as in "tickets".
      words: options and their values; a `Path` is written so that it is taken for no option and no home directory.
    """
    return " ".join([f"python -m loft_jax.{command}", *map(_pasted, words)])


def _pasted(word: str | Path) -> str:
    text = str(word)
    return shlex.quote(f"./{text}" if isinstance(word, Path) and text.startswith(("-", "~")) else text)


def path_problem(text: str) -> str | None:
    """Say why no file or directory can have this name; None if one can."""
    if not text.strip():
        return "is empty"
    if any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text):
        return "has a control character, or bytes that are not UTF-8"
    encoded = os.fsencode(text)
    if len(encoded) > 1000 or any(len(part) > 255 for part in encoded.split(b"/")):
        return "is too long"
    return None
