"""Plans of GPipe: programs, memory, code and bytes, stage by stage."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from helpers import tiny
from helpers.planned import planned

from loft_jax.cost.memory import PeakMemory, gpipe_memory, nbytes
from loft_jax.gpipe.pipeline import StageProgram
from loft_jax.plan.plan import Program


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
    plan = replace(plan, programs=tuple(programs))
    assert (plan.sent, plan.flops) == (60, 9e6)


def test_a_stage_holds_its_state_and_the_input_of_every_micro_batch():
    variables, sums, inputs = (
        [jax.ShapeDtypeStruct((n,), jnp.float32) for n in some] for some in ((10, 20), (100, 200), (5, 7))
    )
    pipeline = SimpleNamespace(microbatches=3, variable_shapes=variables, sum_shapes=sums, inputs=inputs)
    sizes = SimpleNamespace(temp_size_in_bytes=8, output_size_in_bytes=4, alias_size_in_bytes=2)
    program = SimpleNamespace(memory_analysis=lambda: sizes)
    # Of the first stage the gradient too that begins the way back.
    for stage, floats in enumerate((10 + 100 + 3 * 5 + 7, 20 + 200 + 3 * 7)):
        peak = gpipe_memory({StageProgram(stage, "backward"): program}, pipeline, 1000)
        assert peak == PeakMemory(4 * floats + 1000, 10, f"stage {stage + 1} backward")


def test_a_pipelines_code_is_that_of_the_stage_that_has_most(monkeypatch):
    def compiled(setting, lowered):
        parts = ("temp", "output", "alias")
        sizes = {name: {"generated_code_size_in_bytes": 10**name.stage} for name in lowered}
        sizes = {
            name: SimpleNamespace(**own, **{f"{part}_size_in_bytes": 0 for part in parts})
            for name, own in sizes.items()
        }
        return {n: SimpleNamespace(memory_analysis=lambda n=n: sizes[n], cost_analysis=dict) for n in lowered}

    monkeypatch.setattr("loft_jax.plan.planner._Setting.compiled", compiled)
    monkeypatch.setattr("loft_jax.plan.planner.collectives", lambda program: [])
    plan = planned("cpu:2", gpipe__stages=2, gpipe__microbatches=2, loft__workers=1)
    assert plan.code == 2 * 10, "the last stage has two programs of 10 bytes, the first three of 1"
