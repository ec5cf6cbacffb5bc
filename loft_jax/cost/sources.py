"""Where an instruction of a compiled program comes from: the source line, from the tables in the program's text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_OWN = "/loft_jax/"


@dataclass(frozen=True)
class _Place:
    function: str
    path: str
    line: str


class Sources:
    """The source lines of a program.

    Args:
      header: the text before the program's first computation, which lists files, functions, lines and calls by number.
    """

    def __init__(self, header: str):
        parts = re.split(rf"^({'|'.join(_TABLES)})$", header, flags=re.MULTILINE)
        rows = {name: dict(re.findall(r"^(\d+) (.*)$", text, re.MULTILINE)) for name, text in _pairs(parts[1:])}
        self._files, self._functions, self._locations, self._frames = (rows.get(name, {}) for name in _TABLES)

    def find(self, metadata: str) -> str:
        """Return "function (file:line)" for an instruction's metadata; empty if it names no source.

        It is that of the innermost call in this package, otherwise that of the innermost call.
        """
        frame = re.search(r"\bstack_frame_id=(\d+)", metadata)
        if not frame:
            named = re.search(r'\bsource_file="([^"]*)" source_line=(\d+)', metadata)
            return f"{_short(named[1])}:{named[2]}" if named else ""
        places = list(self._walk(frame[1]))
        own = [place for place in places if _OWN in place.path]
        place = next(iter(own or places), None)
        return f"{place.function} ({_short(place.path)}:{place.line})" if place else ""

    def _walk(self, frame: str) -> Iterator[_Place]:
        """Yield the places of a frame and of the calls around it, innermost first."""
        seen: set[str] = set()
        while frame in self._frames and frame not in seen:
            seen.add(frame)
            call = _numbers(self._frames[frame])
            place = _numbers(self._locations.get(call.get("file_location_id", ""), ""))
            function, file = place.get("function_name_id", ""), place.get("file_name_id", "")
            path, line = self._files.get(file, "").strip('"'), place.get("line", "")
            yield _Place(self._functions.get(function, "").strip('"'), path, line)
            # The text counts a frame's caller one higher than the frames themselves; 1 is for none.
            frame = str(int(call.get("parent_frame_id", "1")) - 1)


def _short(path: str) -> str:
    """Return a path from this package on, or from the directory of the other packages on."""
    return path.rpartition(_OWN)[2] if _OWN in path else path.rpartition("/site-packages/")[2]


def _pairs(parts: list[str]) -> Iterator[tuple[str, str]]:
    return zip(parts[::2], parts[1::2], strict=True)


def _numbers(row: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\d+)", row))
