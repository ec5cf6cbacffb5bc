"""The files of a study: how long things have taken, whatever the clock of the day does."""

import time

import pytest

from loft_jax.study.place import Place


@pytest.fixture
def clocks(monkeypatch):
    """The clock of the day and the monotonic one, to be set."""
    clocks = {"time": 1e9, "monotonic": 5.0}
    for name in clocks:
        monkeypatch.setattr(time, name, lambda name=name: clocks[name])
    return clocks


@pytest.mark.parametrize("jump", [0.0, 3600.0, -3600.0])
def test_a_clock_of_the_day_that_jumps_changes_no_duration(jump, clocks, tmp_path):
    place = Place(str(tmp_path / "study"))
    place.open("{}")
    start, files = place.start({}), place.files("a")
    files.path.mkdir(parents=True)
    files.begin()
    for _ in range(2):
        clocks["monotonic"] += 10
        clocks["time"] += 10 + jump
        start.tick()
        files.tick()
    assert place.spent() == pytest.approx(20, abs=1e-3)
    assert files.seconds == pytest.approx(20, abs=1e-3)
    # As a process that was killed leaves it, for the next one.
    after = place.files("a")
    assert after.seconds == pytest.approx(20, abs=1e-3)
    after.begin()
    clocks["monotonic"] += 5
    after.end({"state": "done"})
    assert after.result()["seconds"] == pytest.approx(25, abs=1e-3)


def test_a_job_that_another_process_has_begun_is_not_prolonged(clocks, tmp_path):
    place = Place(str(tmp_path / "study"))
    place.open("{}")
    place.files("a").path.mkdir(parents=True)
    place.files("a").begin()
    clocks["monotonic"] += 10
    other = place.files("a")
    other.tick()
    assert other.seconds == pytest.approx(0, abs=1e-3)
