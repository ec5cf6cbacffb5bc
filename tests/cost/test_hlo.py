"""Bytes read from compiled programs, compared with the declared ones: a hidden collective must not go unnoticed."""

import jax
import pytest
from helpers.tiny import MODEL, Run, config
from helpers.two_layers import TwoLayers

from loft_jax import create_model
from loft_jax.config.config import Config
from loft_jax.cost.compiled import wire_bytes
from loft_jax.cost.hlo import Collective, parse, payloads
from loft_jax.cost.prediction import gpipe_bytes
from loft_jax.data.facts import Facts
from loft_jax.devices.mesh import make_mesh
from loft_jax.gpipe.cuts import boundary_floats
from loft_jax.loft.fragments import Fragment
from loft_jax.loft.images import make_images
from loft_jax.loft.round import Round
from loft_jax.loft.state import initial_state
from loft_jax.loft.traffic import sent_bytes
from loft_jax.models.resnet import ResNet
from loft_jax.paper import CUTS

POST = ResNet(blocks=(1, 2), num_classes=3, width=4, preactivation=False)


@pytest.mark.parametrize(
    ("kind", "groups", "payload", "devices"),
    [
        ("all-reduce", "replica_groups={{0,1},{2,3}}", 4 * 6 + 2 * 3, 2),
        ("all-gather", "replica_groups=[1,4]<=[4]", 4 * 6 + 2 * 3, 4),
        ("all-to-all", "replica_groups=[2,2]<=[2,2]T(1,0)", 4 * 6 + 2 * 3, 2),
        ("reduce-scatter", "replica_groups=mesh['a'=2,'b'=2] {'b'}", 4 * 6 + 2 * 3, 2),
        ("all-reduce", "replica_groups={}", 4 * 6 + 2 * 3, 4),
        ("collective-permute", "source_target_pairs={{0,1},{1,0}}", 4 * 6 + 2 * 3, 2),
    ],
)
@pytest.mark.parametrize("asynchronous", ["", "-start"])
def test_a_line_of_hlo_says_kind_payload_and_devices(kind, groups, payload, devices, asynchronous):
    text = f"""HloModule m, num_partitions=4

ENTRY %main (x: f32[2,3], y: bf16[3]) -> f32[2,3] {{
  %x = f32[2,3]{{1,0:T(8,128)}} parameter(0)
  %y = bf16[3]{{0}} parameter(1)
  ROOT %c = (f32[2,3]{{1,0:T(8,128)}}, bf16[3]{{0}}) {kind}{asynchronous}(%x, %y), {groups}, metadata={{op="while("}}
}}
"""
    assert parse(text) == [Collective(kind, payload, devices, times=1)]


LOOP = """HloModule m, num_partitions=2

%body (p: (s32[], f32[3])) -> (s32[], f32[3]) {
  %p = (s32[], f32[3]{0}) parameter(0)
  %x = f32[3]{0} get-tuple-element(%p), index=1
  %r = f32[3]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[], f32[3]{0}) tuple(%x, %r)
}

%outer (p: f32[3]) -> f32[3] {
  %p = f32[3]{0} parameter(0)
  %w = (s32[], f32[3]{0}) while(%p), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}

ENTRY %main (x: f32[3]) -> f32[3] {
  %x = f32[3]{0} parameter(0)
  %one = f32[3]{0} call(%x), to_apply=%outer
  ROOT %two = f32[3]{0} call(%x), to_apply=%outer
}
"""


def test_a_loops_body_counts_as_often_as_it_runs():
    assert parse(LOOP) == 2 * [Collective("all-reduce", 12, 2, times=5)]


# As libtpu writes it: no count beside the loop; its counter starts at a copy of 1, is raised by 2 and tested against 8.
COUNTED = """HloModule m, num_partitions=4

%body (p: (s32[], f32[3], s32[])) -> (s32[], f32[3], s32[]) {
  %p = (s32[]{:T(128)}, f32[3]{0:T(128)S(1)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %two.1..sunk = s32[]{:T(128)} constant(2), metadata={op_name="jit(f)/while"}
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n.1 = s32[]{:T(128)} copy(%n), backend_config={"flag_configs":[]}
  %x = f32[3]{0:T(128)S(1)} get-tuple-element(%p), index=1
  %other = s32[]{:T(128)} get-tuple-element(%p), index=2
  %r = f32[3]{0:T(128)S(1)} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%sum
  %next = s32[]{:T(128)} add(%n.1, %two.1..sunk), metadata={op_name="jit(f)/while/body/add" stack_frame_id=7}
  ROOT %t = (s32[]{:T(128)}, f32[3]{0:T(128)S(1)}, s32[]{:T(128)}) tuple(%next, %r, %other)
}

%condition (p: (s32[], f32[3], s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(8)
  %p = (s32[]{:T(128)}, f32[3]{0:T(128)S(1)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %limit), direction=LT, metadata={op_name="lt"}
}

ENTRY %main (x: f32[3]) -> f32[3] {
  %x = f32[3]{0:T(128)} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %first = s32[]{:T(128)} copy(%one), backend_config={"flag_configs":[]}
  %t = (s32[]{:T(128)}, f32[3]{0:T(128)}, s32[]{:T(128)}) tuple(%first, %x, /*index=2*/%one)
  %w = (s32[]{:T(128)}, f32[3]{0:T(128)}, s32[]{:T(128)}) while(%t), condition=%condition, body=%body, metadata={}
  ROOT %y = f32[3]{0:T(128)} get-tuple-element(%w), index=1
}
"""


def test_a_loop_that_counts_between_constants_is_counted():
    assert parse(COUNTED) == [Collective("all-reduce", 12, 2, times=4)]
    assert parse(COUNTED.replace("add(%n.1, %two.1..sunk)", "add(%two.1..sunk, %n.1)"))[0].times == 4
    assert parse(COUNTED.replace("constant(8)", "constant(0)"))[0].times == 0
    assert parse(COUNTED.replace("constant(2)", "constant(1)"))[0].times == 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%limit = s32[]{:T(128)} constant(8)", "%limit = s32[]{:T(128)} get-tuple-element(%p), index=2"),
        ("direction=LT", "direction=NE"),
        ("compare(%n, %limit)", "compare(%limit, %n)"),
        ("add(%n.1, %two.1..sunk)", "multiply(%n.1, %two.1..sunk)"),
        ("add(%n.1, %two.1..sunk)", "add(%other, %two.1..sunk)"),
        ("add(%n.1, %two.1..sunk)", "add(%n.1, %other)"),
        ("tuple(%next, %r, %other)", "tuple(%other, %r, %next)"),
        ("constant(2)", "constant(0)"),
        ("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} parameter(1)"),
        ("condition=%condition, ", ""),
    ],
)
def test_a_loop_that_may_count_otherwise_is_an_error(old, new):
    assert old in COUNTED
    with pytest.raises(ValueError, match="how often r runs is not known"):
        parse(COUNTED.replace(old, new))


def test_what_is_not_known_is_an_error_and_no_guess():
    with pytest.raises(ValueError, match="how often r runs is not known"):
        parse(LOOP.replace('"known_trip_count":{"n":"5"}', ""))
    with pytest.raises(ValueError, match="named in an unknown way"):
        parse(LOOP.replace("replica_groups={{0,1}}", "replica_groups=mesh['a'=4] {'a':(1)2}"))


HEAD = "HloModule m, num_partitions=2\n\nENTRY %main (x: f32[3]) -> f32[3] {\n  %x = f32[3]{0} parameter(0)\n"
CONDITIONAL = """HloModule m, num_partitions=2

%quiet (x: f32[3]) -> f32[3] {
  ROOT %x = f32[3]{0} parameter(0)
}

%loud (x: f32[3]) -> f32[3] {
  %x = f32[3]{0} parameter(0)
  ROOT %r = f32[3]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (i: s32[], x: f32[3]) -> f32[3] {
  %i = s32[] parameter(0)
  %x = f32[3]{0} parameter(1)
  ROOT %c = f32[3]{0} conditional(%i, %x, %x), branch_computations={%quiet, %loud}
}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONDITIONAL, "how often r runs is not known"),
        (HEAD + "  ROOT %r = f32[3]{0} ragged-all-to-all(%x)\n}\n", "r is a ragged-all-to-all"),
        (HEAD + "  ROOT %r = f32[3]{0} all-reduce(), replica_groups={{0,1}}\n}\n", "operands of r have no size"),
        (HEAD.replace("%x = ", "x = ") + "}\n", "no instruction was found in main"),
    ],
)
def test_what_cannot_be_counted_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_an_asynchronous_collective_counts_once_and_tiled_operands_have_their_size():
    text = (
        HEAD
        + """  %s = f32[3]{0:T(8,128)} all-reduce-start(f32[3]{0:T(8,128)} %x), replica_groups={{0,1}}, to_apply=%add
  ROOT %d = f32[3]{0} all-reduce-done(%s)
}
"""
    )
    assert parse(text) == [Collective("all-reduce", 12, 2, times=1)]


def test_a_ring_sends_what_the_paper_of_rings_says():
    assert sent_bytes("all-reduce", 100, 4) * 4 == 2 * 3 * 100
    assert sent_bytes("all-to-all", 100, 4) == 75
    assert sent_bytes("all-gather", 100, 4) == 300
    assert sent_bytes("reduce-scatter", 100, 4) == 75
    assert sent_bytes("collective-permute", 100, 4) == 100


def compiled(run, names=None):
    lowered = run.programs
    return {name: payloads(lowered[name].compile()) for name in names or lowered}


@pytest.mark.parametrize("fused", [pytest.param(False, marks=pytest.mark.full), True], ids=["stepwise", "fused"])
@pytest.mark.parametrize("sync", ["psum", pytest.param("exchange", marks=(pytest.mark.full, pytest.mark.compat))])
def test_a_round_has_no_collective_but_its_syncs(sync, fused):
    run = Run(config(loft__sync=sync), fused=fused)
    predicted = run.round.sync.traffic(run.full, Fragment()).payloads
    assert set(predicted) == ({"all-reduce", "all-to-all"} if sync == "exchange" else {"all-reduce"})
    training = {"loop": {}} if fused else {"begin": {}, "step": {}}
    assert compiled(run) == training | {"sync": predicted}


SETTINGS = [
    (MODEL, {"sync": "psum", "workers": 2}),
    pytest.param(POST, {"sync": "psum", "partition": "none", "devices": 2}, marks=pytest.mark.full),
    pytest.param(POST, {"sync": "exchange", "devices": 2}, marks=(pytest.mark.full, pytest.mark.compat)),
    pytest.param(MODEL, {"sync": "exchange", "partition": "all", "devices": 2}, marks=pytest.mark.full),
    pytest.param(POST, {"sync": "exchange", "momentum": "reset", "devices": 4}, marks=pytest.mark.full),
    (MODEL, {"sync": "exchange", "devices": 1}),
    pytest.param(MODEL, {"sync": "exchange", "workers": 2, "data": 2}, marks=pytest.mark.full),
]


@pytest.mark.parametrize(
    ("model", "settings"), SETTINGS, ids=lambda x: ",".join(map(str, getattr(x, "values", list)()))
)
def test_the_ledger_is_the_bytes_of_the_compiled_sync_and_assembly(model, settings):
    sections = {"devices": "mesh__worker", "data": "mesh__data"}
    run = Run(config(**{sections.get(key, f"loft__{key}"): value for key, value in settings.items()}), model=model)
    assert compiled(run, ["sync"])["sync"] == run.round.sync.traffic(run.full, Fragment()).payloads
    assembly = run.round.assembly(run.full)
    assert set(assembly) == ({"assembly"} if settings["sync"] == "exchange" else set())
    for program in assembly.values():
        assert payloads(program.lower().compile()) == program.traffic.payloads


def test_variables_of_two_split_groups_are_in_the_ledger():
    run = Run(config(loft__workers=2), model=TwoLayers())
    assert compiled(run, ["sync"])["sync"] == run.round.sync.traffic(run.full, Fragment()).payloads


@pytest.mark.full
def test_a_data_parallel_step_reduces_gradients_loss_and_norm_statistics():
    """For a norm 4 numbers a channel: two means forward, and two back, which its parameters' gradients are made of."""
    run = Run(config(loft__workers=2, mesh__data=2))
    network = run.round.step.model.with_norms()
    shapes = jax.eval_shape(network.init, jax.random.key(0), run.dataset.train_images[:1].astype(float))
    parameters, statistics = (sum(x.size for x in jax.tree.leaves(shapes[kind])) for kind in ("params", "batch_stats"))
    assert compiled(run, ["step"])["step"] == {"all-reduce": 4 * (parameters + 1 + statistics)}


@pytest.mark.full
@pytest.mark.parametrize(("workers", "least"), [(2, 3.5), (4, 5.3)])
def test_gpipe_puts_several_times_the_bytes_of_an_exchange_on_the_wire(workers, least):
    """PreResNet-34 on CIFAR-10, 500 syncs against 20 true epochs, the paper's partition and cuts; momentum reset."""
    model, shape = create_model("preresnet34", 10), (32, 32, 3)
    loft = {"workers": workers, "sync": "exchange", "momentum": "reset"}
    settings = Config.model_validate({"model": {"name": "preresnet34"}, "data": {"batch_size": 128}, "loft": loft})
    dataset, mesh = Facts(shape, 10, 50_000, 10_000).placeholder(), make_mesh(settings)
    round_ = Round(settings, model, dataset, mesh, make_images(settings, dataset, mesh, shapes_only=True))
    full = jax.eval_shape(lambda: initial_state(model, settings, shape))
    sync = {"sync": round_.programs(full)["sync"]}
    gpipe = gpipe_bytes(boundary_floats(model, shape, CUTS["preresnet34"][workers]), 20 * 50_000)
    assert gpipe / (500 * wire_bytes(sync, workers)) >= least
