"""Plans of GPipe: programs, memory, code and bytes, stage by stage."""

from dataclasses import replace

from helpers import tiny
from helpers.planned import planned

from loft_jax.cost.compiled import CompiledRound, Program
from loft_jax.devices.mesh import nbytes


def test_a_pipelines_programs_run_once_a_micro_batch_and_its_updates_once_a_step():
    settings = {"gpipe__stages": 2, "gpipe__microbatches": 2, "loft__workers": 1}
    plan, run = planned("cpu:2", **settings), tiny.Run(tiny.config(**settings))
    runs = {
        "stage 1 forward": 6,
        "stage 1 backward": 6,
        "stage 1 update": 3,
        "stage 2 backward": 6,
        "stage 2 update": 3,
    }
    assert {program.name: program.runs for program in plan.programs} == runs
    waits = {"forward": 1.5, "backward": 1.5, "update": 1}
    assert {p.name: p.ticks for p in plan.programs} == {name: waits[name.split()[-1]] for name in runs}
    assert plan.full_state == nbytes(run.full)
    # A device sends what its own stage sends, and computes what its own stage computes.
    programs = [Program(f"stage {s + 1} backward", 3, 1e6 * (s + 1), 0.0, (), 10.0 * (s + 1), s) for s in (0, 1)]
    plan = replace(plan, compiled=CompiledRound(tuple(programs), 0, 2))
    assert (plan.sent, plan.flops) == (60, 9e6)


def test_a_stage_holds_its_state_and_the_input_of_every_micro_batch():
    run = tiny.Run(tiny.config(gpipe__stages=2, gpipe__microbatches=2, loft__workers=1))
    resident = run.round.resident(run.full)
    # Of the first stage the gradient too that begins the way back.
    returning = nbytes(run.round.inputs[1])
    for stage, extra in enumerate((returning, 0)):
        own = (run.round.state_shapes[stage], run.round.sum_shapes[stage])
        held = nbytes(own) + 2 * nbytes(run.round.inputs[stage]) + extra
        assert resident[f"stage {stage + 1} backward"] == resident[f"stage {stage + 1} update"] == held


def test_the_peak_is_that_of_the_program_that_needs_most_beside_what_stays():
    programs = (
        Program("a", 1, 0.0, 0.0, temporary=8, results=4, aliased=2, resident=100),
        Program("b", 1, 0.0, 0.0, temporary=9, resident=50),
    )
    peak = CompiledRound(programs, 1000, 1).memory
    assert (peak.name, peak.resident, peak.program, peak.total) == ("a", 1100, 10, 1110)


def test_a_pipelines_code_is_that_of_the_stage_that_has_most():
    stages = [0, 0, 0, 1, 1]
    programs = tuple(Program(f"p{i}", 1, 0.0, 0.0, stage=s, code=10**s) for i, s in enumerate(stages))
    code = CompiledRound(programs, 0, 2).code
    assert code == 2 * 10, "the last stage has two programs of 10 bytes, the first three of 1"
