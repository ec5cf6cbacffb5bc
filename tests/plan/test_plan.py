"""Plans: on virtual devices against rounds that run there, on TPUs against declared bytes; what is refused, and how."""

import csv
import importlib.util
import io
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import jax
import pytest
import yaml
from helpers import tiny
from helpers.planned import planned
from helpers.settings_helpers import refusal

from loft_jax.config.command_line import run_command
from loft_jax.config.config import Config
from loft_jax.cost.compiled import CompiledRound, Program, count_all_steps
from loft_jax.cost.hlo import Collective, collectives
from loft_jax.cost.memory import data_bytes
from loft_jax.cost.timing import Seconds, program_seconds
from loft_jax.data.facts import Facts, facts_to_compile_for
from loft_jax.devices.chips import CHIPS, Chip
from loft_jax.devices.mesh import make_mesh
from loft_jax.errors import UserError
from loft_jax.loft.evaluate import Evaluator
from loft_jax.plan.__main__ import main
from loft_jax.plan.plan import check_fits, make_compiler_refusal
from loft_jax.plan.planner import check_whole_slice, make_plan, prepare
from loft_jax.plan.tables import as_rows, print_plan
from loft_jax.plan.topology import Topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
PEAKS = Chip("a chip", tflops=1.0, memory_gb=1.0, memory_gbps=100.0, link_gbps=1.0)


def held_by_the_fullest_device(arrays):
    held = Counter()
    for array in arrays:
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values())


def needed(program):
    """Bytes of a program beside its arguments: temporary space, and results that take no argument's place."""
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def measured(**settings):
    """Of a round that runs: what its compiled programs hold and send, and the peak of what devices really hold."""
    before = jax.live_arrays()
    run = tiny.Run(tiny.config(**settings))
    test_set = Evaluator(run.config, run.model, run.dataset, run.mesh, run.images)
    programs = {name: program.compile() for name, program in run.programs.items()}
    masks, workers = run.round.train_locally(run.state)
    known = set(map(id, before))
    held = held_by_the_fullest_device([array for array in jax.live_arrays() if id(array) not in known])
    # That of the sync, and of the last local step, whose result has taken its argument's place.
    peak = held + max(needed(programs[name]) for name in ("step", "sync"))
    del test_set, masks, workers
    return {name: collectives(program) for name, program in programs.items()}, held, peak


ROUNDS = {
    "psum": {"loft__sync": "psum"},
    "exchange": {"loft__sync": "exchange"},
    "data-parallel": {"loft__workers": 2, "mesh__data": 2},
}


@pytest.mark.parametrize("name", ["psum", *(pytest.param(n, marks=pytest.mark.full) for n in ROUNDS if n != "psum")])
def test_a_plan_on_virtual_devices_is_what_a_round_there_sends_and_holds(name):
    plan, (moved, held, peak) = planned("cpu:4", **ROUNDS[name]), measured(**ROUNDS[name])
    assert {program.name: list(program.collectives) for program in plan.programs} == moved
    assert_as_declared(plan)
    assert plan.memory.name in ("step", "sync")
    assert plan.memory.resident == pytest.approx(held, rel=0.05)
    assert plan.peak == pytest.approx(peak, rel=0.05)


def assert_as_declared(plan):
    """Payloads are what the model's declaration says; in a data-parallel step the norm statistics come on top."""
    payloads = Counter()
    for program in plan.programs:
        for found in program.collectives:
            payloads[program.name, found.kind, found.devices] += program.runs * found.times * found.payload
    assert payloads.keys() == plan.declared.keys() != set()
    for key in payloads:
        if key[0] == "sync":
            assert payloads[key] == plan.declared[key]
        else:
            assert plan.declared[key] < payloads[key] < 1.5 * plan.declared[key], (
                "a step's norm statistics are not declared"
            )


def test_a_loops_steps_are_counted_as_often_as_they_run():
    """By what a step costs that is a program of its own."""
    runs = {fused: tiny.Run(tiny.config(), fused=fused) for fused in (False, True)}
    programs = {}
    for run in runs.values():
        for name, program in run.programs.items():
            cost = program.compile().cost_analysis()
            programs[name] = Program(name, 1, cost["flops"], cost["bytes accessed"])
    loop = count_all_steps(programs["loop"], programs["begin"], 3)
    for figure, tolerance in (("flops", 0.05), ("accessed", 0.2)):
        one, each = (getattr(programs[name], figure) for name in ("begin", "step"))
        assert getattr(loop, figure) == pytest.approx(one + 3 * each, rel=tolerance)


def test_a_pipelines_stages_send_what_it_says():
    settings = {"gpipe__stages": 2, "gpipe__microbatches": 2, "loft__workers": 1}
    plan, run = planned("cpu:2", **settings), tiny.Run(tiny.config(**settings))
    assert sum(program.runs * program.sent for program in plan.programs) == 3 * run.round.bytes_per_step
    assert plan.pipeline == (2, 2)
    # Of two stages and two micro-batches one tick in three is spent waiting.
    by_stage = [
        sum(
            p.runs * program_seconds(p, PEAKS, "float32").total * (1 if p.name.endswith("update") else 1.5)
            for p in plan.programs
            if p.name.startswith(f"stage {stage}")
        )
        for stage in (1, 2)
    ]
    assert plan.compute(PEAKS).total == pytest.approx(max(by_stage))


@pytest.fixture(scope="module")
def plan():
    return planned("cpu:4", loft__sync="psum")


def test_the_time_is_that_of_the_slower_of_arithmetic_and_memory_and_then_of_sending(plan):
    found = (Collective("all-reduce", 1000, 4, 1),)
    programs = (Program("step", 3, 2e9, 1e6), Program("sync", 1, 1e6, 5e8, found, 1500.0))
    plan = replace(plan, compiled=CompiledRound(programs, 0, 4))
    assert plan.compute(PEAKS) == Seconds(arithmetic=pytest.approx(3 * 2e9 / 1e12), memory=pytest.approx(5e8 / 1e11))
    assert plan.sending_seconds(PEAKS) == pytest.approx(1500 / 1e9)
    assert plan.flops == 4 * (3 * 2e9 + 1e6)
    assert plan.compute(Chip("cpu")) is plan.sending_seconds(Chip("cpu")) is None


def test_a_plan_is_printed_with_what_its_time_is_missing(plan, capsys):
    print_plan(plan, Chip("cpu"))
    shown = capsys.readouterr().out
    for text in (
        "4 of 4 in cpu:4",
        "worker 4 x data 1",
        "all-reduce",
        "give --peak_tflops, --memory_gbps and --link_gbps",
    ):
        assert text in shown
    print_plan(plan, PEAKS)
    shown = capsys.readouterr().out
    assert "ms a round at the chip's peaks" in shown
    assert "bound     links (" in shown
    assert "of 1,000 MB" in shown
    assert {row[0] for row in as_rows(plan, PEAKS)} == {"mesh", "memory", "program", "collective", "round"}


def test_a_card_of_which_jax_takes_too_little_is_told(plan, capsys):
    for share, told in ((0.7, False), (0.8, True)):
        print_plan(plan, replace(CHIPS["h100"], memory_gb=plan.peak / share / 1e9))
        assert ("XLA_PYTHON_CLIENT_MEM_FRACTION" in capsys.readouterr().out) == told


def test_the_command_prints_rows_and_refuses_what_does_not_fit(monkeypatch, capsys, write):
    dataset = tiny.dataset()
    monkeypatch.setattr("loft_jax.plan.planner.make_model", lambda *_: tiny.MODEL)
    monkeypatch.setattr("loft_jax.plan.planner.prepare", lambda *_: None)
    monkeypatch.setattr("loft_jax.data.facts_to_compile_for", lambda _: (Facts.from_dataset(dataset), dataset))
    path = write(yaml.safe_dump(tiny.config().model_dump()))
    arguments = ["--config", str(path), "--topology", "cpu:4", "--format", "csv", "--link_gbps", "1"]
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    main()
    shown = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    payloads = [row["value"] for row in rows if row["name"] == "sync all-reduce of 4" and "payload" in row["figure"]]
    assert len(payloads) == 2
    assert payloads[0] == payloads[1]
    assert "compiling 3/3: sync" in shown.err
    monkeypatch.setattr(sys, "argv", ["plan", *arguments, "--memory_gb", "1e-5"])
    with pytest.raises(SystemExit, match="2"):
        run_command(main)
    assert "are needed" in capsys.readouterr().err


def test_images_to_compile_for_are_as_many_as_a_device_keeps():
    facts, images = facts_to_compile_for(Config.model_validate({"data": {"name": "cifar10"}}))
    assert (facts.examples, images.train_images.shape) == (50_000, (50_000, 32, 32, 3))
    facts, images = facts_to_compile_for(Config.model_validate({"data": {"name": "imagenet2012"}}))
    assert (facts.examples, facts.streamed, images.streamed) == (1_281_167, True, True)
    assert (images.examples, images.image_shape) == (1_281_167, (224, 224, 3))
    facts, images = facts_to_compile_for(Config())
    assert facts.examples == images.examples == 1437
    assert images.name == "digits"


def test_a_pipeline_is_not_planned_for_data_that_it_cannot_train_on():
    config = Config.model_validate({"data": {"name": "imagenet2012"}, "gpipe": {"stages": 2}})
    with pytest.raises(UserError, match=r"gpipe\.stages=2: .* imagenet2012 is streamed \(data\.loading=auto\)"):
        make_plan(config, Topology.parse("cpu:2"), *facts_to_compile_for(config))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config FILE for what to plan; see --help"),
        (
            ["--config", "FILE"],
            "give --topology T for the hardware to plan for, such as h100:8, v5e:4x4 or cpu:4; see --help",
        ),
        (["--config", "FILE", "--topology", "v5e:4y4"], "--topology v5e:4y4: slices of v5e are"),
        (["--config", "FILE", "--topology", "cpu:4", "--link_gbps", "0"], "--link_gbps 0.0: must be a positive number"),
        (
            ["--config", "FILE", "--topology", "cpu:4", "--memory_gb", "nan"],
            "--memory_gb nan: must be a positive number",
        ),
        (["--config", "FILE", "--topology", "h100:9"], "--topology h100:9: must be h100:N, 1 to 8 cards of one host"),
        (
            ["--config", "FILE", "--topology", "v5e:4x4", "--kernel_us", "2"],
            "--kernel_us 2.0: kernels are counted for GPUs; leave it out",
        ),
        (
            ["--config", "FILE", "--topology", "h100:8", "--network_gbps", "50"],
            "--network_gbps 50.0: h100:8 has no network between hosts; leave it out, or plan for several hosts",
        ),
        (
            ["--config", "FILE", "--topology", "cpu:4", "--peak_tflops", "many"],
            "invalid float value: 'many'; see --help",
        ),
    ],
)
def test_bad_options_are_refused_before_jax_is_loaded(write, arguments, message):
    arguments = [str(write("")) if argument == "FILE" else argument for argument in arguments]
    script = (
        "import sys\nfrom loft_jax.config.command_line import run_command\nfrom loft_jax.plan.__main__ import main\n"
        "try:\n    run_command(main)\nfinally:\n    print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "False\n"


def test_more_devices_than_the_topology_has_are_refused():
    message = refusal(make_mesh, tiny.config(mesh__data=4), Topology.parse("cpu:2").devices())
    assert message == "mesh.data=4: only 2 cpu devices are available; try 2"


def test_a_part_of_a_slice_is_refused_with_what_takes_all_of_it():
    slice_ = Topology.parse("v5e:4x4")
    assert refusal(check_whole_slice, tiny.config(data__batch_size=32), slice_, 4) == (
        "--topology v5e:4x4: the run would use 4 of its 16 chips, but plans are made for whole slices; try "
        "mesh.data=4, or a smaller slice"
    )
    assert "try loft.workers=4, mesh.data=4, or" in refusal(check_whole_slice, tiny.config(loft__workers=6), slice_, 3)
    assert "try gpipe.stages=2, or" in refusal(
        check_whole_slice, tiny.config(loft__workers=1, gpipe__stages=3), slice_, 3
    )
    check_whole_slice(tiny.config(), slice_, 16)
    check_whole_slice(tiny.config(), Topology.parse("cpu:9"), 4)


def test_what_does_not_fit_is_refused_with_the_largest_batch_that_may(plan):
    step = Program("step", 3, 1.0, 1.0, temporary=8_000_000_000, resident=1_000_000_000)
    steps = replace(plan, compiled=CompiledRound((step,), 0, 4))
    check_fits(steps, Chip("cpu"))
    check_fits(steps, replace(PEAKS, memory_gb=9))
    need = "9 GB are needed, 1 GB of them for state, data and code, but a device of cpu:4 has "
    assert refusal(check_fits, steps, replace(PEAKS, memory_gb=5)) == (
        f"data.batch_size=4: {need}5 GB; try about data.batch_size=2, or mesh.data=2 on more devices"
    )
    too_wide = "try a smaller model.width"
    assert (
        refusal(check_fits, steps, replace(PEAKS, memory_gb=0.5)) == f"model.name=preresnet20: {need}0.5 GB; {too_wide}"
    )
    sync = replace(plan, compiled=CompiledRound((replace(step, name="sync", grows=False),), 0, 4))
    assert refusal(check_fits, sync, replace(PEAKS, memory_gb=5)) == f"model.name=preresnet20: {need}5 GB; {too_wide}"


def test_what_the_compiler_says_of_its_room_is_said_on():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (46.50G) exceeds "
    )
    said += "available HBM (15.50G)."
    topology, config = Topology.parse("v5e:4x4"), tiny.config(data__batch_size=100)
    assert str(make_compiler_refusal(config, topology, "loop", said)) == (
        "data.batch_size=100: the compiler finds no room for the program 'loop' on a chip of v5e:4x4: 49.93 GB are "
        "needed, but only 16.64 GB are available; try about data.batch_size=33, or mesh.data=2 on more devices"
    )
    pipeline = tiny.config(data__batch_size=100, gpipe__stages=2, loft__workers=1)
    message = str(make_compiler_refusal(pipeline, topology, "stage 1 backward", "RESOURCE_EXHAUSTED: no room"))
    assert message.endswith("on a chip of v5e:4x4; try about data.batch_size=48")


TPU_ROUNDS = {
    "psum": {"loft__sync": "psum"},
    "exchange": {"loft__sync": "exchange"},
    "data-parallel": {"loft__workers": 2, "mesh__data": 2},
}


@needs_libtpu
@pytest.mark.parametrize("name", TPU_ROUNDS)
def test_a_plan_for_a_tpu_says_what_the_declaration_says(name):
    plan = planned("v5e:2x2", **TPU_ROUNDS[name])
    assert [program.name for program in plan.programs] == ["loop", "sync"]
    assert_as_declared(plan)
    assert plan.compute(plan.topology.chip).total > 0
    check_fits(plan, plan.topology.chip)
    assert plan.memory.total < plan.peak, "the code of its programs lies in a TPU's memory"


@needs_libtpu
def test_what_the_compiler_has_no_room_for_is_refused():
    message = refusal(lambda: planned("v5e:1x1", loft__workers=1, data__batch_size=40_000_000))
    assert "the compiler finds no room for the program" in message
    assert "try about data.batch_size=" in message


def test_of_streamed_images_a_device_holds_the_batch_in_work_and_two_on_their_way():
    config = Config.model_validate({"data": {"name": "imagenet2012", "batch_size": 8}, "mesh": {"data": 2}})
    facts, _ = facts_to_compile_for(config)
    assert data_bytes(facts, config, 4) == 3 * 4 * (224 * 224 * 3 + 4)


@pytest.mark.parametrize(("topology", "kept"), [("cpu:2", True), ("v5e:2x2", False)])
def test_programs_for_devices_that_are_not_there_are_not_kept(topology, kept, monkeypatch):
    configured, updates = [], {}
    monkeypatch.setattr("loft_jax.plan.planner.configure_jax", configured.append)
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    prepare(Config(), Topology.parse(topology))
    assert updates == {"jax_platforms": "cpu", "jax_enable_compilation_cache": kept}
    assert configured[0].mesh.cpu_devices == (2 if kept else 1)
