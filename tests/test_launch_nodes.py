"""launch/slurm.sbatch with a task for each node of eight devices: really run, on virtual devices of the CPU."""

import json
import os
import random
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT
from helpers.runs import SMALL, settings_with

# Starts the command once for each node, with the variables that Slurm gives to its task, and says what it hands on.
SRUN = """#!/bin/sh
shift
echo "$JAX_LOCAL_DEVICE_IDS" > "$STUB/devices"
export SLURM_NTASKS="$SLURM_NNODES" SLURM_STEP_NODELIST=localhost SLURM_LOCALID=0
pids=
task=0
while [ "$task" -lt "$SLURM_NNODES" ]; do
  SLURM_PROCID=$task "$@" &
  pids="$pids $!"
  task=$((task + 1))
done
code=0
for pid in $pids; do wait "$pid" || code=$?; done
exit "$code"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A directory with stand-ins for srun and scontrol, and an allocation of nodes with eight GPUs each."""
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/sh\necho "$*" > "$STUB/requeued"\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name, value in {
        "STUB": str(tmp_path),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "WORKDIR": str(tmp_path / "run"),
        # JAX derives the port from it.
        "SLURM_JOB_ID": str(random.SystemRandom().randrange(10**6)),
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_GPUS_ON_NODE": "8",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)
    return tmp_path


def submit(slurm, nodes, *options):
    """As `sbatch --nodes=N --ntasks-per-node=1 --gpus-per-node=8 launch/slurm.sbatch OPTIONS` starts the file."""
    command = ["bash", ROOT / "launch/slurm.sbatch", *map(str, options)]
    environment = os.environ | {"SLURM_NNODES": str(nodes)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("nodes", "data"), [(1, 2), pytest.param(2, 4, marks=pytest.mark.full)], ids=["one node", "two nodes"]
)
def test_four_workers_use_all_devices_of_the_nodes(nodes, data, slurm):
    config = slurm / "settings.yaml"
    config.write_text(yaml.safe_dump(settings_with(model=SMALL, train={"rounds": 2, "eval_every": 2})))
    done = submit(slurm, nodes, "--config", config, "--loft.workers", 4, "--mesh.data", data, "--mesh.cpu_devices", 8)
    assert done.returncode == 0, done.stderr
    assert f"devices   {8 * nodes} cpu of {8 * nodes}, idle: none" in done.stdout
    assert f"mesh      worker 4 x data {data}; 4 workers, 1 a device" in done.stdout
    summary = json.loads((slurm / "run/summary.json").read_text())
    assert (summary["devices"], summary["workers"], summary["round"]) == (8 * nodes, 4, 2)
    assert (slurm / "devices").read_text() == "0,1,2,3,4,5,6,7\n"
    assert not (slurm / "requeued").exists()


@pytest.mark.parametrize(
    ("tasks", "gpus", "given", "expected"),
    [("4", "4", None, ""), ("1", "1", None, ""), ("1", "4", None, "0,1,2,3"), ("1", "8", "0,1", "0,1")],
)
def test_only_the_single_task_of_a_node_is_told_to_take_all_devices(tasks, gpus, given, expected, slurm, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", gpus)
    monkeypatch.setenv("PYTHON", "true")
    if given:
        monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", given)
    assert submit(slurm, 1).returncode == 0
    assert (slurm / "devices").read_text() == f"{expected}\n"


def test_a_node_without_gpus_is_left_as_it_is(slurm, monkeypatch):
    monkeypatch.delenv("SLURM_GPUS_ON_NODE")
    monkeypatch.setenv("PYTHON", "true")
    assert submit(slurm, 1).returncode == 0
    assert (slurm / "devices").read_text() == "\n"
