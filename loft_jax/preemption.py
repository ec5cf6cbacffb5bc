"""SIGTERM, by which schedulers take a machine back: the run leaves at the end of its round, instead of dying in it."""

import signal
from types import FrameType
from typing import Any


class Preemption:
    """Whether SIGTERM has come to this process since the block was entered. Use as a context manager."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Preemption":
        self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
