"""The ways a command stops on purpose; anything else that is raised is a bug and keeps its traceback."""

import difflib
import os
import reprlib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """What the user asked for cannot be done; the message says what to change. Commands exit with code 2."""


class RunStopped(Exception):  # noqa: N818
    """The run cannot go on, for a reason found while it ran. Commands exit with code 1."""


class Preempted(Exception):  # noqa: N818
    """The run was asked to leave, and has saved what it had; the same command goes on. Commands exit with code 0."""


def exit_code(stop: Exception) -> int:
    """Of a command that one of these has stopped."""
    codes: dict[type[Exception], int] = {UserError: 2, RunStopped: 1, Preempted: 0}
    return codes[type(stop)]


# YAML's anchors make values of a few lines whose text would fill the memory.
_LONGEST = 200
_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = _short.maxlong = _LONGEST


def format_value(value: Any) -> str:
    """A value in a message: on one line, not too long, and with quotes where one would not see where it ends."""
    if isinstance(value, str) and value.isprintable() and value == value.strip() != "" and len(value) <= _LONGEST:
        return value
    return format_literal(value)


def format_literal(value: Any) -> str:
    """A value as Python writes it, cut where it is long or deep; but null, true and false."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return _short.repr(value)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about a name that is not known: the known one it is nearest to, else `otherwise`."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        # A right key in the wrong section is closest in its last part.
        close = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    hint = f"did you mean {close[0]}?" if close else otherwise
    return f"; {hint}" if hint else ""


def path_problem(text: str) -> str | None:
    """Why no file or directory can go by this name; None where one can."""
    if not text.strip():
        return "is empty"
    if any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text):
        return "has a control character, or bytes that are not UTF-8"
    encoded = os.fsencode(text)
    if len(encoded) > 1000 or any(len(part) > 255 for part in encoded.split(b"/")):
        return "is too long"
    return None
