"""Plans for NVIDIA cards that are not there: the plug-in, bytes against the declaration, kernels, hosts, memory."""

import csv
import importlib.util
import io
import subprocess
import sys
from collections import Counter
from importlib import metadata

import pytest
import yaml
from helpers import tiny
from helpers.planned import planned
from helpers.settings_helpers import refusal

from loft_jax.cost.kernels import kernels_of_steps, sum_kernels
from loft_jax.devices.chips import CHIPS
from loft_jax.models import count_flops
from loft_jax.plan.cuda import CARDS, check_plugin
from loft_jax.plan.kernel_tables import COLUMNS, as_kernel_rows, print_kernels, step_kernels
from loft_jax.plan.plan import check_fits
from loft_jax.plan.planner import check_one_host
from loft_jax.plan.tables import as_rows, print_plan
from loft_jax.plan.topology import Topology

needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax_cuda12_plugin is not installed"
)
NEED = "--topology h100:4: compiling for NVIDIA cards needs JAX's plug-in for CUDA 12"


def pretend_installed(monkeypatch, *names):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in names else None)


def test_without_the_plugin_it_is_said_how_to_install_it(monkeypatch):
    pretend_installed(monkeypatch)
    message = refusal(Topology.parse("h100:4").devices)
    assert message == f"{NEED}, which is not installed; pip install 'loft_jax[cuda12]'"


def test_a_plugin_of_another_cuda_is_refused(monkeypatch):
    pretend_installed(monkeypatch, "jax_cuda13_plugin")
    message = refusal(check_plugin, "h100:4")
    assert message.startswith(f"{NEED}, but the installed one is for CUDA 13; pip install 'loft_jax[cuda12]' in an env")


def test_a_plugin_for_another_jax_is_refused(monkeypatch):
    pretend_installed(monkeypatch, "jax_cuda12_plugin")
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.9.9" if name == "jax-cuda12-plugin" else real(name))
    assert refusal(check_plugin, "h100:4") == (
        f"{NEED} in the version of jaxlib, {real('jaxlib')}, but 0.9.9 is installed; pip install 'loft_jax[cuda12]' -U"
    )


def test_the_missing_plugin_is_reported_before_jax_is_loaded(write):
    script = (
        "import sys, importlib.util\nreal = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'jax_cuda12_plugin' else real(name, *a)\n"
        "from loft_jax.config.command_line import run_command\nfrom loft_jax.plan.__main__ import main\n"
        "try:\n    run_command(main)\nfinally:\n    print('jax' in sys.modules)"
    )
    command = [sys.executable, "-c", script, "--config", str(write("")), "--topology", "h100:4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "pip install 'loft_jax[cuda12]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_card_of_the_table_is_described():
    assert set(CARDS) == {name for name, chip in CHIPS.items() if chip.platform == "cuda"}
    for name, card in CARDS.items():
        assert card.kind in CHIPS[name].kinds
        assert card.memory / 1e9 == pytest.approx(CHIPS[name].memory_gb, rel=1e-3)
        assert card.bandwidth / 1e9 == pytest.approx(CHIPS[name].memory_gbps, rel=1e-3)


def test_a_pipeline_over_several_hosts_is_refused():
    config = tiny.config(gpipe__stages=4, loft__workers=1)
    assert refusal(check_one_host, config, Topology.parse("h100:2x2")) == (
        "gpipe.stages=4: GPipe runs in one process, but h100:2x2 has 2 hosts; try --topology h100:2"
    )
    check_one_host(config, Topology.parse("h100:4"))
    check_one_host(tiny.config(), Topology.parse("h100:2x2"))


@needs_plugin
@pytest.mark.parametrize("name", ["h100:8x2", "h200:1", "a100:4"])
def test_devices_are_cards_of_hosts(name):
    topology = Topology.parse(name)
    devices = topology.devices()
    assert [device.process_index for device in devices] == sorted(list(range(topology.hosts)) * topology.sides[1])
    assert {device.device_kind for device in devices} <= set(topology.chip.kinds)


ROUNDS = {
    "psum": {"loft__sync": "psum"},
    "exchange": {"loft__sync": "exchange"},
    "data-parallel": {"loft__workers": 2, "mesh__data": 2},
}


@pytest.fixture(scope="module")
def plan():
    return planned("h100:4", **ROUNDS["psum"])


def payloads_of(plan):
    found = Counter()
    for program in plan.programs:
        for one in program.collectives:
            found[program.name, one.kind, one.devices] += program.runs * one.times * one.payload
    return found


@needs_plugin
@pytest.mark.parametrize("name", ["psum", "exchange", pytest.param("data-parallel", marks=pytest.mark.full)])
def test_a_plan_for_cards_sends_what_the_declaration_says(name):
    plan = planned("h100:4", **ROUNDS[name])
    assert [program.name for program in plan.programs] == ["loop", "sync"]
    sync = {key: payload for key, payload in payloads_of(plan).items() if key[0] == "sync"}
    assert sync == {key: payload for key, payload in plan.declared.items() if key[0] == "sync"} != {}
    loop = {key: payload for key, payload in payloads_of(plan).items() if key[0] == "loop"}
    # A data-parallel step reduces its norm statistics too, which are not declared.
    assert loop.keys() == {key for key in plan.declared if key[0] == "loop"}
    assert all(plan.declared[key] < payload < 1.5 * plan.declared[key] for key, payload in loop.items())


@needs_plugin
def test_a_loop_has_the_models_flops_and_the_kernels_of_every_step(plan):
    run = tiny.Run(tiny.config(), fused=False)
    programs = run.round.programs(run.full)
    loop = plan.programs[0]
    assert loop.flops == 3 * count_flops(programs["step"].trace()) + count_flops(programs["begin"].trace()) > 0
    kernels, moved = sum_kernels(kernels_of_steps(loop.kernels))
    assert kernels % 3 == 0
    assert 0 < moved < loop.accessed == sum_kernels(loop.kernels)[1]
    convolutions = sum(k.times for k in loop.kernels if k.kind in ("convolution", "product"))
    # Ten convolutions and a product, each with two gradients but for the first one's input.
    assert convolutions >= 3 * (3 * 9 - 1)


@needs_plugin
def test_a_plan_for_cards_is_timed_printed_and_written(plan, capsys):
    chip = plan.topology.chip
    seconds = plan.compute(chip)
    assert seconds.bound == "launches", "a network as small as this one"
    assert plan.sending_seconds(chip) > 0
    check_fits(plan, chip)
    print_plan(plan, chip)
    shown = capsys.readouterr().out
    for text in (
        "4 of 4 in h100:4",
        "kernels a run",
        "GB a local step",
        "us a kernel",
        "bound     launches (",
        "of 84,930 MB",
    ):
        assert text in shown
    rows = {(part, name, figure): value for part, name, figure, value in as_rows(plan, chip)}
    kernels = sum_kernels(kernels_of_steps(plan.programs[0].kernels))[0]
    assert rows["local step", "loop", "kernels"] == kernels / 3
    assert rows["round", "bound by launches", "seconds"] == seconds.launches


@needs_plugin
def test_a_plan_for_several_hosts_says_what_crosses_them(capsys):
    plan = planned("h100:2x2", **ROUNDS["psum"])
    (summed,) = {found.groups for program in plan.programs for found in program.collectives}
    assert (plan.hosts, summed) == ((0, 0, 1, 1), ((0, 1, 2, 3),))
    chip = plan.topology.chip
    assert plan.sending_seconds(chip) == pytest.approx(plan.sent / 100e9), "two adapters of 400 Gb/s, not NVLink"
    print_plan(plan, chip)
    shown = capsys.readouterr().out
    assert "hosts     2; worker crosses hosts" in shown
    assert "4, 2 a host" in shown
    assert any(name == "sync all-reduce of 4, 2 a host" for _, name, _, _ in as_rows(plan, chip))


@needs_plugin
def test_what_does_not_fit_a_card_is_refused():
    plan = planned("h100:1", loft__workers=1, data__batch_size=40_000_000)
    assert "but a device of h100:1 has 84.93 GB; try about data.batch_size=" in refusal(
        check_fits, plan, plan.topology.chip
    )


@needs_plugin
@pytest.mark.full
def test_a_pipeline_is_planned_stage_by_stage():
    plan = planned("a100:2", gpipe__stages=2, gpipe__microbatches=2, loft__workers=1)
    assert {program.stage for program in plan.programs} == {0, 1}
    assert plan.compute(plan.topology.chip).total > 0
    backward = [one for one in step_kernels(plan) if one.program == "stage 1 backward"]
    assert {one.runs / one.kernel.times for one in backward} == {2.0}, "a run for each micro-batch"


def test_kernels_of_virtual_devices_are_listed_by_what_they_do_and_by_layer(capsys):
    plan = planned_with_kernels()
    kernels = step_kernels(plan)
    rows = list(as_kernel_rows(kernels))
    assert {row[0] for row in rows} == {"step"}
    assert {len(row) for row in rows} == {len(COLUMNS)}
    total = sum(one.moved for one in kernels)
    assert total == sum_kernels(plan.programs[1].kernels)[1]
    print_kernels(kernels)
    shown = capsys.readouterr().out
    assert f"kernels   {sum(one.runs for one in kernels):,.0f} a local step" in shown
    assert "stage2_block2/conv1" in shown
    assert "update_parameters" in shown


def planned_with_kernels():
    from loft_jax.data.facts import Facts
    from loft_jax.plan.planner import make_plan

    dataset = tiny.dataset()
    facts, topology = Facts.from_dataset(dataset), Topology.parse("cpu:4")
    return make_plan(tiny.config(), topology, facts, dataset, model=tiny.MODEL, kernels=True)


def test_without_kernels_to_list_that_is_refused():
    plan = planned("cpu:4")
    assert refusal(step_kernels, plan) == "--kernels: the compiler for cpu:4 shows no kernels; leave it out"


@needs_plugin
@pytest.mark.full
def test_the_command_lists_kernels_as_rows(write):
    """In a process of its own, which sets its environment itself."""
    settings = tiny.config().model_dump() | {"model": {"name": "preresnet20", "width": 4}, "data": {"batch_size": 8}}
    command = [sys.executable, "-m", "loft_jax.plan", "--config", str(write(yaml.safe_dump(settings)))]
    command += ["--topology", "h200:4", "--kernels", "--format", "csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert tuple(rows[0]) == COLUMNS
    assert {"convolution", "reduction"} <= {row["kind"] for row in rows}
    assert "stage2_block2/conv1" in {row["layer"] for row in rows}
