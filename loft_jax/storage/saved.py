"""What names of directories say: which rounds are saved, of which seed a training is. Imports neither JAX nor NumPy."""

import re
from collections.abc import Collection
from pathlib import Path

_FEW = 20


def saved_instead(saved: Collection[int], asked: int) -> str:
    """The end of a message about a round that is not saved: the nearest one, and which there are."""
    nearest = min(saved, key=lambda r: (abs(r - asked), r))
    few = len(saved) <= _FEW
    there = ", ".join(map(str, sorted(saved))) if few else f"{len(saved)} from {min(saved)} to {max(saved)}"
    return f"try {nearest}; there are {there}"


def saved_rounds(directory: Path) -> list[int]:
    """Rounds that are completely saved in a directory of checkpoints or snapshots, ascending."""
    # What is being written, or was when the process died, has a suffix to its name.
    return (
        sorted(int(p.name) for p in directory.glob("*") if p.name.isascii() and p.name.isdigit())
        if directory.is_dir()
        else []
    )


def seed_of(name: str) -> int | None:
    """Return the seed that a training's directory is named after, seedK; None for another name, as of a copy."""
    found = re.fullmatch(r"seed(0|[1-9][0-9]{0,9})", name)
    return int(found[1]) if found else None
