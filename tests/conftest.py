"""Four virtual CPU devices, and one compilation cache for the session that leaves the user's alone.

`-m gpu` leaves JAX the GPU, and looks into tests/gpu only: what the other tests import need not be there.
"""

import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import pytest


def pytest_configure(config):
    # Whoever starts the tests in the background, as with nohup, may let them ignore what tests send.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_num_cpu_devices", 4)
    if _on_gpu(config):
        # Several processes share it.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        return
    # For the programs that tests start, too.
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    # Tests compile for minutes and compute for seconds, so LLVM does not optimise here; an XLA_FLAGS of one's own wins.
    # `.ci/run` runs those marked `compat` with an empty one: on programs as users get them.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def pytest_ignore_collect(collection_path, config):
    elsewhere = collection_path.suffix == ".py" and collection_path.parent != Path(__file__).parent / "gpu"
    return True if _on_gpu(config) and elsewhere else None


def pytest_report_header(config):
    return jax.print_environment_info(return_string=True).splitlines() if _on_gpu(config) else None


def _on_gpu(config):
    return config.getoption("markexpr") == "gpu"


@pytest.fixture(scope="session")
def common(tmp_path_factory, request):
    """A directory for all processes of pytest-xdist, whose own lie side by side."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


@pytest.fixture(scope="session", autouse=True)
def _caches(common):
    directory = common / "cache"
    # Two test runs may share what they compile, as in CI.
    compiled = os.environ.get("LOFT_JAX_TEST_COMPILED") or directory / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    patch = pytest.MonkeyPatch()
    patch.setenv("LOFT_JAX_CACHE", str(directory))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def finished(common):
    """A finished run of `runs.config_of()`, to be read only: (its directory, its summary)."""
    from helpers.runs import config_of, opened

    from loft_jax.storage.run_directory import RunDirectory
    from loft_jax.train.__main__ import run

    path = common / "undisturbed"
    with open(common / "undisturbed.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process trains it, the others wait
        summary = RunDirectory(path).summary() or run(config_of(), opened(path, config_of()))
    return path, summary


@pytest.fixture
def retrain(monkeypatch):
    """Run the command with these arguments, in this process."""
    monkeypatch.setattr("loft_jax.devices.configure_jax", lambda config: None)

    def call(*arguments):
        from loft_jax.retrain.__main__ import main

        monkeypatch.setattr(sys, "argv", ["retrain", *map(str, arguments)])
        main()

    return call


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, with the tickets of its last snapshot at 50 % and 0 %."""
    from loft_jax.storage.run_directory import RunDirectory
    from loft_jax.tickets.snapshots import Snapshots

    shutil.copytree(finished[0], tmp_path / "run")
    snapshots = Snapshots(RunDirectory(tmp_path / "run"))
    for ratio in (0.5, 0.0):
        ticket = snapshots.ticket(snapshots.scores(6, "l2"), 6, ratio, "group", "l2")
        ticket.write(tmp_path / "run/tickets" / ticket.name)
    return tmp_path / "run"


@pytest.fixture
def write(tmp_path):
    """Write a text into a file of its own; returns the path."""

    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current directory, with what `refused.fill` puts there."""
    from helpers.refused import fill

    path, patch = tmp_path_factory.mktemp("bad_input"), pytest.MonkeyPatch()
    patch.chdir(path)
    fill(path)
    yield path
    patch.undo()
