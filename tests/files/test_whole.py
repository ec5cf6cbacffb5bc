"""Files written whole or not at all, and where compiled programs are kept."""

import os
from pathlib import Path

import jax
import pytest
from helpers.settings_helpers import refusal

from loft_jax.devices.setup import keep_compiled_programs
from loft_jax.errors import RunStopped
from loft_jax.files import ASIDE, claim_new, directory_aside, ensure_writable, replacing, write_atomically


def test_what_could_not_be_put_in_place_leaves_nothing_aside(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(RunStopped, match=r"a: cannot be written \(Is a directory\)"):
        write_atomically(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_that_is_there_and_takes_no_files_is_refused():
    assert refusal(ensure_writable, Path("/proc"), "--workdir").startswith("--workdir /proc: cannot be written (")


def test_what_a_dead_process_left_aside_is_removed_and_what_is_being_written_is_not(tmp_path):
    for left in (".a.123.tmp", ".a.0123456789abcdef.tmp", ".b.1.tmp"):
        (tmp_path / left).write_text("half")
    with replacing(tmp_path / "a") as file:
        file.write(b"first")
        write_atomically(tmp_path / "a", "second")
        assert len(list(tmp_path.glob(".a.*.tmp"))) == 1, "that of the first, which is alive"
    assert (tmp_path / "a").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.1.tmp", "a"]


def test_names_of_what_is_not_complete_do_not_follow_from_the_number_of_a_process(tmp_path):
    names = set()
    for _ in range(2):
        handle, path = claim_new(tmp_path, ".a.", ASIDE)
        names.add(path.name)
        os.close(handle)
        path.unlink()
    assert len(names) == 2


def test_a_directory_aside_is_removed_at_the_end_and_by_the_next_process_after_a_kill(tmp_path):
    (tmp_path / ".report.77.tmp" / "figures").mkdir(parents=True)
    with directory_aside(tmp_path, "report") as path, directory_aside(tmp_path, "report") as other:
        assert path != other
        assert sorted(tmp_path.iterdir()) == sorted([path, other])
    assert list(tmp_path.iterdir()) == []


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
