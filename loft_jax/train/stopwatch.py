"""Measures the time of a run by phase: compile, train, sync, evaluation."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import jax

_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Stopwatch:
    """Counts seconds by phase since the last `lap`; time of compilation is taken out of the phase it falls in."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Count the wall time of the `with` block, without compilation, under this name; name it in a trace too."""
        compiled, start = self._seconds.get("compile", 0.0), time.perf_counter()
        with jax.profiler.TraceAnnotation(name):
            yield
        elapsed = time.perf_counter() - start - (self._seconds.get("compile", 0.0) - compiled)
        self._seconds[name] = self._seconds.get(name, 0.0) + max(0.0, elapsed)

    def lap(self) -> dict[str, float]:
        """Return phase -> seconds, and start again from zero."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def close(self) -> None:
        """Stop listening to JAX's compile events."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in _COMPILE_EVENTS:
            self._seconds["compile"] = self._seconds.get("compile", 0.0) + duration_secs
