"""Files written whole or not at all, and what is kept in the cache."""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.settings_helpers import refusal

from loft_jax.devices.setup import keep_compiled_programs
from loft_jax.errors import RunStopped
from loft_jax.files import cache_array, ensure_writable, write_atomically


def test_what_could_not_be_put_in_place_leaves_nothing_aside(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(RunStopped, match=r"a: cannot be written \(Is a directory\)"):
        write_atomically(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_that_is_there_and_takes_no_files_is_refused():
    assert refusal(ensure_writable, Path("/proc"), "--workdir").startswith("--workdir /proc: cannot be written (")


def test_what_cannot_be_cached_leaves_nothing_behind(tmp_path, caplog):
    (tmp_path / "x.npy").mkdir()
    cache_array(tmp_path / "x.npy", np.zeros(3))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    assert "x.npy is not cached: " in caplog.text


def test_compiled_programs_are_kept_in_the_cache_unless_the_environment_names_another_place(monkeypatch):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setenv("LOFT_JAX_CACHE", "/cache")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    keep_compiled_programs()
    assert updates["jax_compilation_cache_dir"] == "/cache/compiled"
    updates.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/other")
    keep_compiled_programs()
    assert "jax_compilation_cache_dir" not in updates
