"""Kernels read from the text of a program for a GPU: how many, their bytes, what they are and where they come from."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from loft_jax.cost.hlo import Collective, parse, text_of
from loft_jax.cost.kernels import find_kernels, kernels_of_steps, sum_kernels
from loft_jax.cost.text import read_module

# As XLA writes it for an H100: 128 images of a training set of 50,000 gathered inside a fusion; a convolution of cuDNN;
# a slice written in place; a loop of 16 steps; a collective that begins and ends; source lines in the header.
PROGRAM = (Path(__file__).parent / "gpu_step.hlo").read_text()
IMAGES, FEATURES = 128 * 32 * 32 * 3, 128 * 32 * 32 * 64


@pytest.fixture(scope="module")
def found():
    return {kernel.name: kernel for kernel in find_kernels(read_module(PROGRAM))}


def test_what_a_device_starts_is_a_kernel_and_a_loops_body_runs_as_often_as_it_says(found):
    assert {name: kernel.times for name, kernel in found.items()} == {
        "copied": 1,
        "batch": 16,
        "conv": 16,
        "sums": 16,
        "new": 16,
        "packed": 16,
        "start": 1,
    }
    assert sum_kernels(found.values())[0] == 5 * 16 + 2


def test_a_kernels_bytes_are_those_of_its_operands_and_results_and_of_a_gather_what_it_picks(found):
    assert (found["batch"].read, found["batch"].written) == (IMAGES + 4 * 128, 2 * IMAGES)
    assert (found["conv"].read, found["conv"].written) == (2 * IMAGES + 2 * 64 * 27, 2 * FEATURES)
    assert (found["sums"].read, found["sums"].written) == (2 * FEATURES, 2 * 4 * 64)
    assert (found["new"].read, found["new"].written) == (4 * 64 + 4, 4 * 64), "written in place"
    # Of two results one is a part of its operand, read and written in place.
    assert (found["packed"].read, found["packed"].written) == (4 * 64 + 4 * 64 + 4, 4 * 64 + 4 * 64)
    assert found["copied"].each == 2 * 4 * 8
    assert (found["start"].read, found["start"].written) == (4 * 8, 4 * 8)
    assert sum_kernels([found["conv"]]) == (16, 16 * found["conv"].each)


def test_kernels_say_what_they_are_and_where_they_come_from(found):
    kinds = {"batch": "gather", "conv": "convolution", "sums": "reduction", "copied": "copy", "start": "collective"}
    assert {name: found[name].kind for name in kinds} == kinds
    assert found["new"].kind == "element-wise"
    assert (found["conv"].layer, found["conv"].direction) == ("stage1_block1/conv1", "forward")
    assert (found["sums"].layer, found["sums"].direction) == ("stage1_block1/norm1", "backward")
    # The innermost line of this package, not Flax's.
    assert found["conv"].source == "_Block.__call__ (models/resnet.py:183)"
    assert found["batch"].layer == found["batch"].source == "Round._local_step (loft/round.py:204)"
    assert found["copied"].layer == found["copied"].source == ""


def test_the_kernels_of_the_steps_are_those_of_the_loop(found):
    assert {kernel.name for kernel in kernels_of_steps(found.values())} == {"batch", "conv", "sums", "new", "packed"}
    small = [kernel for kernel in found.values() if kernel.name in ("copied", "new", "start")]
    assert kernels_of_steps([k for k in small if not k.loop]) == [found["copied"], found["start"]]


def test_collectives_that_begin_and_end_are_found_with_their_devices():
    (collective,) = parse(PROGRAM)
    assert collective == Collective("all-reduce", 32, 4, times=1)
    assert collective.groups == ((0, 1, 2, 3),)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
    ],
)
def test_groups_of_devices_are_read_in_every_way_they_are_written(text, groups):
    (found,) = parse(PROGRAM.replace("replica_groups=[1,4]<=[4]", text))
    assert (found.groups, found.devices) == (groups, len(groups[0]))


def test_a_scatter_changes_only_what_it_is_given():
    text = """HloModule m

ENTRY %main (x: f32[1000,64], i: s32[2,1], y: f32[2,64]) -> f32[1000,64] {
  %x = f32[1000,64]{1,0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  %y = f32[2,64]{1,0} parameter(2)
  ROOT %s = f32[1000,64]{1,0} scatter(%x, %i, %y), update_window_dims={1}, to_apply=%sum
}
"""
    (scatter,) = find_kernels(read_module(text))
    assert (scatter.read, scatter.written) == (4 * 2 + 4 * 128, 4 * 128)


def test_what_begins_a_gather_over_devices_writes_only_its_result():
    gathered = "%start = (f32[8]{0}, f32[32]{0}) all-gather-start(%copied), replica_groups=[1,4]<=[4], dimensions={0}"
    begun = "%start = f32[8]{0} all-reduce-start(%copied), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%sum"
    assert begun in PROGRAM
    found = {kernel.name: kernel for kernel in find_kernels(read_module(PROGRAM.replace(begun, gathered)))}
    assert (found["start"].read, found["start"].written) == (4 * 8, 4 * 32)


def test_a_permutations_devices_are_one_group():
    permute = "collective-permute-start(%copied), source_target_pairs={{0,2},{2,0}}"
    text = PROGRAM.replace("all-reduce-start(%copied), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%sum", permute)
    (found,) = parse(text)
    assert (found.kind, found.groups) == ("collective-permute", ((0, 2),))


def test_a_branch_that_moves_most_counts_and_a_loop_of_unknown_length_is_an_error():
    branches = """
%little (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} copy(%x)
}

%much (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = f32[8]{0} copy(%x)
  ROOT %z = f32[8]{0} transpose(%y), dimensions={0}
}

ENTRY"""
    chosen = "%chosen = f32[8]{0} conditional(%b, %a, %a), branch_computations={%little, %much}\n  %start"
    text = PROGRAM.replace("\nENTRY", branches).replace("%start", chosen, 1)
    assert {k.name for k in find_kernels(read_module(text)) if not k.loop} == {"copied", "y", "z", "start"}
    unknown = PROGRAM.replace('"known_trip_count":{"n":"16"}', "")
    with pytest.raises(ValueError, match="how often w runs is not known"):
        find_kernels(read_module(unknown))


def test_a_text_of_another_form_is_an_error():
    with pytest.raises(ValueError, match="no entry computation was found"):
        read_module("module @jit_f {\n}\n")


def test_a_program_of_this_machine_is_read_too():
    """Its convolution is there once, in a loop of five."""

    def steps(x, kernel):
        def step(x, _):
            return jnp.tanh(jax.lax.conv(x, kernel, (1, 1), "SAME")), None

        return jax.lax.scan(step, x, length=5)[0]

    compiled = jax.jit(steps).lower(jnp.ones((2, 32, 8, 8)), jnp.ones((32, 32, 3, 3))).compile()
    kernels = find_kernels(read_module(text_of(compiled)))
    assert sum(kernel.times for kernel in kernels if kernel.kind == "convolution") == 5
