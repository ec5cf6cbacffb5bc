"""Traces of single rounds by JAX's profiler, for Perfetto and TensorBoard."""

import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import jax


@contextmanager
def trace_round(directory: Path, number: int) -> Generator[None]:
    """Trace the `with` block into DIRECTORY/roundN, replacing a trace that is there.

    What devices compute is in the trace, and the phases of the round; the calls of Python functions are not, because
    recording them would make the round slower and the trace much larger. The file for Perfetto (ui.perfetto.dev) is
    plugins/profile/TIME/perfetto_trace.json.gz in there; TensorBoard takes the directory itself.

    If the profiler fails, a warning says so, and the round goes on without a trace.
    """
    place = directory / f"round{number}"
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    try:
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        jax.profiler.start_trace(place, create_perfetto_trace=True, profiler_options=options)
    except (OSError, RuntimeError) as error:
        _warn(place, error)
        yield
        return
    try:
        with jax.profiler.StepTraceAnnotation("round", step_num=number):
            yield
    finally:
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError, ValueError) as error:
            _warn(place, error)


def _warn(place: Path, error: Exception) -> None:
    print(f"warning: {place}: no trace is written ({error}); the run goes on without it", file=sys.stderr, flush=True)
