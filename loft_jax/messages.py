"""How values and names stand in a message."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

# YAML's anchors make values of a few lines whose text would fill the memory.
_LONGEST = 200
_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = _short.maxlong = _LONGEST


def shown(value: Any) -> str:
    """A value in a message: on one line, not too long, and with quotes where one would not see where it ends."""
    if isinstance(value, str) and value.isprintable() and value == value.strip() != "" and len(value) <= _LONGEST:
        return value
    return abridged(value)


def abridged(value: Any) -> str:
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
