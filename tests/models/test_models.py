"""What the ResNets declare: their sizes, filter groups and widths."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.tiny_resnets import feature_maps, logits, tiny, variable_shapes

from loft_jax import FilterGroup, create_model, extract
from loft_jax.config import model as names
from loft_jax.models.families import FAMILIES
from loft_jax.models.registry import _DECLARED

MODELS = ("preresnet18", "preresnet20", "preresnet34", "resnet18", "resnet34")


def shapes(tree):
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


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


def test_the_config_names_the_models_that_there_are():
    assert set(names.MODELS) == set(_DECLARED) | set(FAMILIES)
