"""The ResNets: sizes, arithmetic against a plain reference, filter groups, widths, norms and dtypes."""

from functools import partial
from math import prod
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ModifyScopeVariableError
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from loft_jax import FilterGroup, create_model, extract
from loft_jax.models import _MODELS
from loft_jax.models.resnet import ResNet
from loft_jax.sections import Model

MODELS = ("preresnet18", "preresnet20", "preresnet34", "resnet18", "resnet34")
NHWC = ("NHWC", "HWIO", "NHWC")


def variable_shapes(model, size=32):
    """Shapes and dtypes of the variables; computes nothing."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def shapes(tree):
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def tiny(preactivation, **changes):
    """Two stages, so with every kind of block, and filled variables: no scale is 1, no bias or mean 0."""
    model = ResNet(blocks=(1, 2), num_classes=3, width=4, preactivation=preactivation, **changes)
    rng = np.random.default_rng(0)
    fill = {"scale": (0.5, 1.5), "bias": (-1, 1), "mean": (-1, 1), "var": (0.5, 2), "kernel": (-0.5, 0.5)}
    flat = {
        path: jnp.asarray(rng.uniform(*fill[path.split("/")[-1]], leaf.shape), leaf.dtype)
        for path, leaf in flatten_dict(variable_shapes(model, 8), sep="/").items()
    }
    return model, unflatten_dict(flat, sep="/")


def feature_maps(model, variables, images):
    """Shape and dtype of the logits and of what each module returns; computes nothing."""
    apply = partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    output, state = jax.eval_shape(apply, variables, images)
    return output, state["intermediates"]


IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)), jnp.float32)


def logits(model, variables, images=IMAGES):
    return np.asarray(jax.jit(model.apply)(variables, images))


def trained(model, variables, images=IMAGES):
    """Logits under training, and the norm statistics after it."""
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    return apply(variables, images)


# Sizes


@pytest.mark.parametrize(
    ("name", "stem", "num_classes", "count"),
    [
        pytest.param("resnet18", "cifar", 10, 11_173_962, marks=pytest.mark.compat),
        ("resnet34", "cifar", 10, 21_282_122),
        pytest.param("preresnet18", "cifar", 10, 11_172_170, marks=pytest.mark.compat),
        ("preresnet34", "cifar", 10, 21_280_330),
        ("resnet18", "imagenet", 1000, 11_689_512),
        ("resnet34", "imagenet", 1000, 21_797_672),
        ("preresnet18", "imagenet", 1000, 11_687_720),
        # 3x3 convolutions, 1x1 shortcuts, norms and head, added up by hand.
        ("preresnet20", "cifar", 10, 272_282),
    ],
)
def test_parameter_counts(name, stem, num_classes, count):
    params = variable_shapes(create_model(name, num_classes, stem=stem))["params"]
    assert sum(prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("name", "stem", "size", "sizes"),
    [
        ("preresnet18", "imagenet", 224, [112, 56, 28, 14, 7]),
        ("resnet18", "imagenet", 224, [112, 56, 28, 14, 7]),
        ("preresnet18", "cifar", 32, [32, 32, 16, 8, 4]),
        ("preresnet20", "cifar", 8, [8, 8, 4, 2]),
    ],
)
def test_feature_maps_and_logits_have_the_published_sizes(name, stem, size, sizes):
    model = create_model(name, 17, stem=stem, width=4)
    output, inner = feature_maps(model, variable_shapes(model, size), jnp.zeros((2, size, size, 3)))
    maps = [inner["stem"]["__call__"][0]]
    maps += [inner[f"stage{stage}_block2"]["__call__"][0] for stage in range(1, len(sizes))]
    assert [m.shape for m in maps] == [(2, s, s, 4 * 2 ** max(i - 1, 0)) for i, s in enumerate(sizes)]
    assert (output.shape, output.dtype) == ((2, 17), jnp.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg"}, "unknown model 'vgg'; known: preresnet18, preresnet20, preresnet34, resnet18, resnet34"),
        ({"stem": "mnist"}, "unknown stem 'mnist'; known: cifar, imagenet"),
        ({"width": 0}, "width=0 and num_classes=10 must be at least 1"),
        ({"num_classes": 0}, "width=16 and num_classes=0 must be at least 1"),
    ],
)
def test_an_unknown_model_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "preresnet20", "num_classes": 10} | arguments)


# Arithmetic


def reference(variables, images, preactivation, stem):
    """The two networks as their papers draw them, in plain lax."""
    params, stats = variables["params"], variables["batch_stats"]

    def conv(x, kernel, stride=1):
        pad = (kernel.shape[0] // 2,) * 2
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, (pad, pad), dimension_numbers=NHWC)

    def norm(x, params, stats):
        return (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]

    relu = jax.nn.relu
    x = conv(images, params["stem"]["kernel"], 2 if stem == "imagenet" else 1)
    if not preactivation:
        x = relu(norm(x, params["stem_norm"], stats["stem_norm"]))
    if stem == "imagenet":
        edges = ((0, 0), (1, 1), (1, 1), (0, 0))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)
    for name, stride in (("stage1_block1", 1), ("stage2_block1", 2), ("stage2_block2", 1)):
        p, s, skip = params[name], stats[name], x
        if preactivation:
            x = relu(norm(x, p["norm1"], s["norm1"]))
            if "shortcut" in p:
                skip = conv(x, p["shortcut"]["kernel"], stride)
            x = relu(norm(conv(x, p["conv1"]["kernel"], stride), p["norm2"], s["norm2"]))
            x = skip + conv(x, p["conv2"]["kernel"])
        else:
            if "shortcut" in p:
                skip = norm(conv(x, p["shortcut"]["kernel"], stride), p["shortcut_norm"], s["shortcut_norm"])
            x = relu(norm(conv(x, p["conv1"]["kernel"], stride), p["norm1"], s["norm1"]))
            x = relu(skip + norm(conv(x, p["conv2"]["kernel"]), p["norm2"], s["norm2"]))
    if preactivation:
        x = relu(norm(x, params["norm"], stats["norm"]))
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("preactivation", [True, False])
def test_logits_are_those_of_a_plain_reference(preactivation, stem):
    model, variables = tiny(preactivation, stem=stem)
    # Of even size, where a stride of 2 tells symmetric padding from "SAME".
    images = jnp.asarray(np.random.default_rng(2).normal(size=(4, 32, 32, 3)), jnp.float32)
    expected = jax.jit(lambda v, i: reference(v, i, preactivation, stem))(variables, images)
    np.testing.assert_allclose(logits(model, variables, images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preactivation", [True, False])
def test_a_branch_scale_acts_as_a_factor_on_conv2(preactivation):
    model, variables = tiny(preactivation)
    scaled = logits(model.with_branch_scales({"stage2/block2": 4.0}), variables)
    conv2 = variables["params"]["stage2_block2"]["conv2"]
    plain = logits(model, variables)
    conv2["kernel"] = conv2["kernel"] * 4
    # Equal to the bit: the factor is a power of two.
    np.testing.assert_array_equal(scaled, logits(model, variables))
    assert np.abs(scaled - plain).max() > 1e-2


def test_branch_scales_of_two_groups_add_up_and_those_of_unknown_groups_are_refused():
    model, _ = tiny(True)
    one_by_one = model.with_branch_scales({"stage2/block2": 2.0}).with_branch_scales({"stage1/block1": 3.0})
    assert one_by_one == model.with_branch_scales({"stage1/block1": 3.0, "stage2/block2": 2.0})
    with pytest.raises(ValueError, match="no such filter group: stage2/block3; known: stage1/block1, stage2/block1, "):
        model.with_branch_scales({"stage2/block3": 2.0})


# Filter groups


def test_filter_groups_of_preresnet20():
    groups = create_model("preresnet20", 10).filter_groups()
    assert [(group.name, group.width, group.partitioned) for group in groups] == [
        ("stage1/block1", 16, False),
        ("stage1/block2", 16, False),
        ("stage1/block3", 16, False),
        ("stage2/block1", 32, False),
        ("stage2/block2", 32, True),
        ("stage2/block3", 32, True),
        ("stage3/block1", 64, False),
        ("stage3/block2", 64, True),
        ("stage3/block3", 64, True),
    ]


@pytest.mark.compat
@pytest.mark.parametrize(("name", "inner_norm"), [("preresnet18", "norm2"), ("resnet18", "norm1")])
def test_a_group_touches_conv1_the_norm_between_and_conv2(name, inner_norm):
    group = {group.name: group for group in create_model(name, 10).filter_groups()}["stage2/block2"]
    assert dict(group.axes) == {
        "params/stage2_block2/conv1/kernel": 3,
        f"params/stage2_block2/{inner_norm}/scale": 0,
        f"params/stage2_block2/{inner_norm}/bias": 0,
        f"batch_stats/stage2_block2/{inner_norm}/mean": 0,
        f"batch_stats/stage2_block2/{inner_norm}/var": 0,
        "params/stage2_block2/conv2/kernel": 2,
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_declared_axis_is_there_and_as_long_as_the_group_is_wide(name):
    model = create_model(name, 10)
    there = shapes(variable_shapes(model))
    groups = model.filter_groups()
    assert len(groups) == sum(model.blocks)
    for group in groups:
        assert {there[path][axis] for path, axis in group.axes.items()} == {group.width}, group.name


@pytest.mark.parametrize("name", MODELS)
def test_all_but_the_first_blocks_of_the_later_stages_are_partitioned(name):
    partitioned = {group.name for group in create_model(name, 10).filter_groups() if group.partitioned}
    blocks = {"preresnet20": (3, 3, 3)}.get(name, (2, 2, 2, 2) if name.endswith("18") else (3, 4, 6, 3))
    later = {f"stage{s}/block{b}" for s, count in enumerate(blocks, 1) for b in range(2, count + 1) if s > 1}
    assert partitioned == later


def test_equal_groups_are_one_static_argument():
    one, same = (create_model("preresnet20", 10).filter_groups() for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    traced = []
    jitted = jax.jit(lambda x, groups: traced.append(groups) or x * groups[0].width, static_argnames="groups")
    assert [float(jitted(1.0, groups=groups)) for groups in (one, same)] == [16, 16]
    assert len(traced) == 1
    narrow = create_model("preresnet20", 10, width=8).filter_groups()
    assert narrow != one
    assert float(jitted(1.0, groups=narrow)) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "filter group 'g': width=0 must be at least 1"),
        ({"axes": {"params/a/kernel": -1}}, "filter group 'g': axis -1 of 'params/a/kernel' must not be negative"),
    ],
)
def test_a_group_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FilterGroup(**{"name": "g", "width": 4, "axes": {"params/a/kernel": 3}, "partitioned": True} | arguments)


# Widths


@pytest.mark.parametrize("name", [pytest.param("preresnet20", marks=pytest.mark.compat), "preresnet18", "resnet18"])
def test_a_narrowed_model_has_the_shapes_of_extracted_variables(name):
    model = create_model(name, 10, width=8)
    widths = {group.name: 1 + i % group.width for i, group in enumerate(model.filter_groups()) if i % 3 != 1}
    owned = {group: np.arange(width) for group, width in widths.items()}
    full = variable_shapes(model)
    compact = jax.eval_shape(lambda variables: extract(variables, model.filter_groups(), owned), full)
    narrow = model.with_widths(widths)
    assert shapes(variable_shapes(narrow)) == shapes(compact)
    assert shapes(compact) != shapes(full)
    declared = {group.name: group.width for group in narrow.filter_groups()}
    assert declared == {group.name: group.width for group in model.filter_groups()} | widths


@pytest.mark.compat
@pytest.mark.parametrize("preactivation", [True, False])
def test_filters_that_conv2_does_not_read_can_be_taken_out(preactivation):
    model, variables = tiny(preactivation)
    kept = np.array([0, 2, 3, 7])
    dropped = np.setdiff1d(np.arange(8), kept)
    conv2 = variables["params"]["stage2_block2"]["conv2"]
    conv2["kernel"] = conv2["kernel"].at[:, :, dropped].set(0)
    compact = extract(variables, model.filter_groups(), {"stage2/block2": kept})
    narrow = logits(model.with_widths({"stage2/block2": 4}), compact)
    np.testing.assert_allclose(narrow, logits(model, variables), rtol=1e-5, atol=1e-5)


def test_widths_are_added_to_those_set_before_and_those_of_unknown_groups_are_refused():
    model = create_model("preresnet20", 10)
    twice = model.with_widths({"stage2/block2": 3, "stage3/block2": 5}).with_widths({"stage2/block2": 4})
    assert twice == model.with_widths({"stage2/block2": 4, "stage3/block2": 5})
    with pytest.raises(ValueError, match="no such filter group: stage4/block1; known: stage1/block1, "):
        model.with_widths({"stage4/block1": 4})


# Dtypes and norms


@pytest.mark.parametrize("preactivation", [True, False])
def test_bfloat16_computes_in_bfloat16_and_keeps_variables_and_logits_in_float32(preactivation):
    model, variables = tiny(preactivation, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    output, state = trained(model, variables)
    assert output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    half, full = logits(model, variables), logits(model.clone(dtype=jnp.float32), variables)
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())
    inner = feature_maps(model, variables, IMAGES)[1]
    del inner["__call__"]
    assert {leaf.dtype for leaf in jax.tree.leaves(inner)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("preactivation", [True, False])
def test_evaluation_changes_no_variable(preactivation):
    model, variables = tiny(preactivation)
    output, state = model.apply(variables, IMAGES, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    np.testing.assert_allclose(output, logits(model, variables), rtol=1e-5, atol=1e-5)
    with pytest.raises(ModifyScopeVariableError):
        model.apply(variables, IMAGES, train=True)


@pytest.mark.parametrize("preactivation", [True, False])
def test_training_uses_the_statistics_of_the_batch_and_evaluation_the_running_ones(preactivation):
    model, variables = tiny(preactivation)
    other = variables | {"batch_stats": jax.tree.map(lambda leaf: leaf + 1, variables["batch_stats"])}
    np.testing.assert_array_equal(trained(model, variables)[0], trained(model, other)[0])
    assert np.abs(logits(model, variables) - logits(model, other)).max() > 1e-2


@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.0])
def test_running_statistics_move_towards_those_of_the_batch(momentum):
    model, variables = tiny(False, norm_momentum=momentum)
    x = lax.conv_general_dilated(IMAGES, variables["params"]["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)
    old, new = variables["batch_stats"]["stem_norm"], trained(model, variables)[1]["batch_stats"]["stem_norm"]
    for name, batch in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2)))):
        np.testing.assert_allclose(new[name], momentum * old[name] + (1 - momentum) * batch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preactivation", [True, False])
def test_over_a_norm_axis_the_parts_of_a_batch_are_normalised_as_the_whole(preactivation):
    model, variables = tiny(preactivation)
    whole, state = trained(model, variables)
    parts = IMAGES.reshape(2, 2, 8, 8, 3)

    def joined(norm_axis):
        part_model = model.clone(norm_axis=norm_axis)
        return jax.vmap(lambda images: trained(part_model, variables, images), axis_name="data")(parts)

    output, states = joined("data")
    np.testing.assert_allclose(output.reshape(4, 3), whole, rtol=1e-3, atol=1e-3)
    jax.tree.map(lambda p, w: np.testing.assert_allclose(p[1], w, rtol=1e-3, atol=1e-3), states, state)
    assert np.abs(joined(None)[0].reshape(4, 3) - whole).max() > 1e-2


def test_kernels_start_at_variance_two_over_fan_out():
    model = ResNet(blocks=(1,), num_classes=3, width=64, preactivation=True)
    kernel = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]["stem"]["kernel"]
    # Four standard errors of a variance of 1728 numbers; the fan-in is 21 times smaller.
    np.testing.assert_allclose(kernel.var(), 2 / (9 * 64), rtol=4 * np.sqrt(2 / kernel.size))


def test_the_config_names_the_models_that_there_are():
    assert get_args(Model.model_fields["name"].annotation) == tuple(_MODELS)
