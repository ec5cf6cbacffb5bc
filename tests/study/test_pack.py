"""One directory for a machine without network: what is in it, its size, and the one command that is run there."""

import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from helpers import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packs the files of a clone")
# Stands for the machine's Python: its study leaves results, small and large ones, in the directory that it is given.
PYTHON = """#!/bin/sh
echo "$@" >>calls.txt
[ "$2" = loft_jax.study ] || exit 0
mkdir -p results/runs/a/seed0/checkpoints/4 results/report
echo '{"kind": "start"}' >results/results.jsonl
touch results/results.csv results/report/report.html results/runs/a/seed0/metrics.jsonl
touch results/runs/a/seed0/checkpoints/4/large results/runs/a/seed0/.lock
exit 3
"""


def run(script, *arguments, **environment):
    words = [str(ROOT / "launch" / script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture
def data(tmp_path):
    (tmp_path / "mine.npz").write_bytes(b"data")
    return tmp_path / "mine.npz"


@pytest.fixture
def packed(data, tmp_path):
    done = run("pack.sh", data, tmp_path / "there", PACKAGES="", NEWEST="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"packed    {tmp_path / 'there'}: ")
    assert done.stdout.endswith(f"there     cd {tmp_path / 'there'} && launch/packed.sh STUDY --budget SECONDS\n")
    return tmp_path / "there"


def test_the_program_its_tests_and_the_data_are_packed_and_the_documentation_is_not(packed):
    for path in ("loft_jax/study/__main__.py", "configs/studies/cifar10_one_gpu.yaml", "tests/gpu", "pyproject.toml"):
        assert (packed / path).exists(), path
    assert (packed / "data/mine.npz").read_bytes() == b"data"
    assert not (packed / "docs").exists()
    assert os.access(packed / "launch/packed.sh", os.X_OK)


def test_it_is_packed_again_in_its_place_and_nowhere_else(packed, data, tmp_path):
    (packed / "left").touch()
    assert run("pack.sh", data, packed, PACKAGES="", NEWEST="").returncode == 0
    assert not (packed / "left").exists()
    (tmp_path / "other").mkdir()
    done = run("pack.sh", data, tmp_path / "other", PACKAGES="", NEWEST="")
    assert (done.returncode, "was not packed by this; name another directory" in done.stderr) == (2, True)


def test_more_than_a_machine_takes_is_refused(data, tmp_path):
    done = run("pack.sh", data, tmp_path / "there", PACKAGES="", NEWEST="", MOST_MIB="0")
    assert (done.returncode, "error: that is more than 0 MiB; pack the data with --files" in done.stderr) == (1, True)


def test_without_data_it_says_how_it_is_used(tmp_path):
    for arguments in ((), (tmp_path / "nowhere.npz",)):
        done = run("pack.sh", *arguments)
        assert (done.returncode, done.stderr.startswith("usage: launch/pack.sh DATA.npz [DIRECTORY]")) == (2, True)


def test_there_one_command_does_the_study_and_collects_what_is_small(packed, tmp_path):
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (packed / "wheels/x.whl").touch()
    (tmp_path / "out").mkdir()
    command = [packed / "launch/packed.sh", "rehearsal", "--budget", "60"]
    environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "OUT": str(tmp_path / "out")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 3, "that of the study"
    install, study = (packed / "calls.txt").read_text().splitlines()
    assert install.endswith("--target packages.tmp wheels/x.whl")
    assert study == "-m loft_jax.study --config rehearsal --workdir results --budget 60"
    with tarfile.open(tmp_path / "out/results.tar.gz") as collected:
        names = {name for name in collected.getnames() if not collected.getmember(name).isdir()}
    assert names == {
        *("results/results.jsonl", "results/results.csv", "results/report/report.html"),
        "results/runs/a/seed0/metrics.jsonl",
    }
    subprocess.run(list(map(str, command)), env=environment, capture_output=True)
    assert len((packed / "calls.txt").read_text().splitlines()) == 3, "packages are installed once"


def test_the_packed_program_is_the_one_that_runs_there(packed):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHON": sys.executable
    }
    shutil.rmtree(packed / "tests/gpu")
    command = [str(packed / "launch/packed.sh"), "rehearsal", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=packed.parent)
    assert "steps.card.paths: tests/gpu: no such file or folder" in done.stderr
