"""The packaged rehearsal, for real: killed at random moments, it ends inside its budget with a report."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from loft_jax.storage import RunDirectory

# Enough for two idle cores; a busier machine needs more.
BUDGET = float(os.environ.get("LOFT_JAX_TEST_BUDGET", "900"))


def start(place, seconds):
    """Start the study in a process group of its own, with so many seconds left of its budget."""
    words = [sys.executable, "-m", "loft_jax.study", "--config", "rehearsal", "--workdir", place / "study"]
    with open(place / "output.txt", "a") as output:
        return subprocess.Popen(
            [*map(str, words), "--budget", str(int(seconds))],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.mark.campaign
@pytest.mark.parametrize("trial", range(3))
def test_the_rehearsal_ends_in_time_with_a_report_although_it_is_killed_twice(trial, tmp_path):
    moments, began, output = random.Random(trial), time.monotonic(), tmp_path / "output.txt"

    def left():
        return BUDGET - (time.monotonic() - began)

    # Anywhere in a job that is drawn at random, or in what comes after it; not the last, which may be the end.
    for number in sorted(moments.sample(range(1, 9), 2)):
        process = start(tmp_path, left())
        while not re.search(rf"^job +([{number}-9])/9 ", output.read_text(), re.MULTILINE):
            assert process.poll() is None, output.read_text()
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 20))
        assert process.poll() is None, "it must still be at work when it is killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with open(output, "a") as file:
            file.write(f"killed    after {time.monotonic() - began:.0f} s\n")
    process = start(tmp_path, left())
    code = process.wait()
    said = output.read_text()
    print(said, f"{time.monotonic() - began:.0f} s")
    assert left() > 0
    assert code == 0, said
    assert "finished  " in said.splitlines()[-1], said
    assert (tmp_path / "study/report/report.html").stat().st_size > 100_000
    rows = [json.loads(line) for line in (tmp_path / "study/results.jsonl").read_text().splitlines()]
    states = {row["job"]: row["state"] for row in rows if "state" in row}
    assert set(states.values()) == {"done"}
    assert sum(row["kind"] == "start" for row in rows) == 3
    for metrics in (tmp_path / "study/runs").rglob("metrics.jsonl"):
        rounds = [row["round"] for row in RunDirectory(metrics.parent).rows()]
        assert rounds == list(range(len(rounds))), metrics
