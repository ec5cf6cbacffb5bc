"""What is shown while a run goes on, on a terminal and elsewhere."""

import re
import sys

import pytest

from loft_jax.console import duration
from loft_jax.train.progress import TrainingProgress


def row(number, **more):
    return {"round": number, "epoch": 0.5 * number, "train/loss": 2.0, "images_per_second": 1234.5, **more}


def test_without_a_terminal_an_evaluation_is_one_plain_line(capsys):
    with TrainingProgress(rounds=40, done=0) as progress:
        # Compilation says nothing of the rounds that follow.
        progress.update(row(1, **{"seconds/compile": 60.0, "seconds/train": 3.0, "seconds/sync": 0.08}))
        progress.update(row(2))
        progress.update(row(3, **{"test/accuracy": 0.5}))
        progress.update(row(40, **{"test/accuracy": 0.75}))
    first, evaluated, last = capsys.readouterr().out.splitlines()
    assert first == "round 1/40  epoch 0.5  loss 2.0000  1,234 images/s  0 s, 2 min 00 s left", "3 s and 0.08 s a round"
    assert evaluated.startswith("round 3/40  epoch 1.5  loss 2.0000  test accuracy 50.00%  1,234 images/s  ")
    assert evaluated.endswith(" left")
    assert last == "round 40/40  epoch 20.0  loss 2.0000  test accuracy 75.00%  1,234 images/s  0 s"


def test_on_a_terminal_there_is_one_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with TrainingProgress(rounds=4, done=1) as progress:
        progress.update(row(4, **{"test/accuracy": 0.5}))
    out = capsys.readouterr().out
    assert "4/4" in out
    for part in ("epoch 2.0", "loss 2.0000", "test accuracy 50.00%", "1,234 images/s", "left"):
        assert part in out


@pytest.mark.parametrize("columns", [80, 100])
def test_on_a_narrow_terminal_times_are_never_cut(capsys, monkeypatch, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with TrainingProgress(rounds=4000, done=1000) as progress:
        progress.update(row(1234, **{"test/accuracy": 0.5}))
    last = [line for line in capsys.readouterr().out.splitlines() if "1234/4000" in line][-1]
    assert re.search(r"1234/4000 .*\d:\d\d:\d\d.* left .*[\d-]:[\d-]{2}:[\d-]{2}", last), last


@pytest.mark.parametrize("terminal", ["dumb", "unknown"])
def test_a_terminal_that_draws_no_bar_gets_lines(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", terminal)
    with TrainingProgress(rounds=4, done=1) as progress:
        progress.update(row(4, **{"test/accuracy": 0.5}))
    assert capsys.readouterr().out == "round 4/4  epoch 2.0  loss 2.0000  test accuracy 50.00%  1,234 images/s  0 s\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_an_hour_is_said_in_hours():
    assert [duration(s) for s in (3599, 3600)] == ["59 min 59 s", "1 h 00 min"]
