"""Four virtual CPU devices, and one compilation cache for the session that leaves the user's alone."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    jax.config.update("jax_compilation_cache_dir", str(directory / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    patch = pytest.MonkeyPatch()
    patch.setenv("LOFT_JAX_CACHE", str(directory))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of `runs.config_of()`, to be read only: (its directory, its summary)."""
    from runs import config_of, opened

    from loft_jax.train import run

    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    return path, run(config_of(), opened(path, config_of()))


@pytest.fixture
def write(tmp_path):
    """Write a text into a file of its own; returns the path."""

    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
