"""What is kept between runs: whatever happens to a file of the cache, what is read is what was made."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from loft_jax.files.cache import cache_directory, cached_arrays

ARRAYS = (np.arange(3000, dtype=np.uint8).reshape(30, 10, 10), np.array(["a note"]), np.array([], str))
PARTS = ("images", "notes", "nothing")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOFT_JAX_CACHE", str(tmp_path))
    return tmp_path / "decoded"


def read(name="some"):
    """The arrays, and whether they were made."""
    made = []

    def make():
        made.append(True)
        return ARRAYS

    found = cached_arrays(name, PARTS, make)
    for array, expected in zip(found, ARRAYS, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
    return bool(made)


def test_arrays_are_made_once(cache):
    assert [read(), read(), read("other"), read("other")] == [True, False, True, False]
    assert {path.name for path in cache.iterdir()} == {f"{n}-{p}.npy" for n in ("some", "other") for p in PARTS}


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "short": lambda path: path.write_bytes(path.read_bytes()[:5]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "a byte": lambda path: path.write_bytes(path.read_bytes()[:1500] + b"!" + path.read_bytes()[1501:]),
    "zeros": lambda path: path.write_bytes(path.read_bytes()[:1000] + bytes(1000) + path.read_bytes()[2000:]),
    "of another": lambda path: path.write_bytes((path.parent / "other-images.npy").read_bytes()),
    "as NumPy writes it": lambda path: np.save(path, ARRAYS[0]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again_and_said(cache, damage, caplog):
    read("other")
    read()
    path = cache / "some-images.npy"
    DAMAGES[damage](path)
    assert read(), "not what is on disk"
    assert (f"{path} is damaged, and made again: " in caplog.text) == (damage != "missing")
    caplog.clear()
    assert not read(), "it is there again"
    assert caplog.text == ""


def test_what_cannot_be_kept_is_made_and_leaves_nothing_aside(cache, caplog):
    (cache / "some-images.npy").mkdir(parents=True)
    assert [read(), read()] == [True, True]
    assert "some-images.npy is not cached: " in caplog.text
    assert not list(cache.glob(".*"))


def test_what_processes_that_were_killed_left_in_the_cache_is_removed_whatever_its_name(cache):
    cache.mkdir()
    (cache / ".of another data set.npy.17.tmp").write_bytes(bytes(100))
    read()
    assert not list(cache.glob(".*"))


def test_without_a_home_the_cache_is_among_temporary_files(monkeypatch):
    monkeypatch.delenv("LOFT_JAX_CACHE", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert cache_directory() == Path(tempfile.gettempdir()) / "loft_jax"
