"""The families: sizes of the literature, the groups that are found in them, and that filters can be taken out."""

import re
from importlib import import_module
from itertools import pairwise
from math import prod

import jax
import jax.numpy as jnp
import pytest
from helpers.silenced import assert_narrow_equals_silenced

from loft_jax import Place
from loft_jax.config.model import MODELS
from loft_jax.errors import UserError
from loft_jax.models.families import FAMILIES, create_family
from loft_jax.models.families.bottleneck import BottleneckResNet
from loft_jax.models.linen import LinenSource
from loft_jax.models.registry import published_width
from loft_jax.models.traced import TracedNetwork

# Deep enough that the rounding of float32 passes 1e-5.
DEEP = ("resnet56", "resnet50", "resnet101", "mobilenetv2", "densenet121")
SMALL = {"resnet20": 4, "resnet56": 4, "resnet50": 4, "resnet101": 4, "mlp": 32, "lenet300": 36}


def shapes(module, size=32, channels=3):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, channels)))


def traced(module, size=32):
    return TracedNetwork(LinenSource(module), (size, size, 3))


def network(name, *, width=None, stem="cifar", num_classes=10, size=32):
    return traced(create_family(name, num_classes, width=width, stem=stem), size)


def norm(channels):
    return 2 * channels


def test_every_name_of_a_config_is_a_family_or_declares_its_groups():
    declared = ("preresnet18", "preresnet20", "preresnet34", "resnet18", "resnet34")
    assert tuple(MODELS) == (*declared, *FAMILIES)


# Sizes

VGG16 = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG16_CIFAR = sum((9 * a + 1) * b + norm(b) for a, b in pairwise(VGG16)) + 513 * 10
# Stem, 2 n layers a stage, head; the first convolution of a stage reads half as many channels.
STEM_OF_RESNET = 27 * 16 + norm(16)
STAGES = [(16, 16), (16, 32), (32, 64)]


def cifar_resnet(n):
    blocks = [9 * a * b + (2 * n - 1) * 9 * b * b + 2 * n * norm(b) for a, b in STAGES]
    return STEM_OF_RESNET + sum(blocks) + 65 * 10


WIDE_STAGES = [(16, 160), (160, 320), (320, 640)]
WIDE = (
    27 * 16
    # First block: norm, convolutions, norm, shortcut; three others; the norm at the end, the head.
    + sum(norm(a) + 9 * a * b + norm(b) + 9 * b * b + a * b for a, b in WIDE_STAGES)
    + sum(3 * (2 * norm(b) + 2 * 9 * b * b) for _, b in WIDE_STAGES)
    + norm(640)
    + 641 * 10
)


@pytest.mark.parametrize(("hidden_layers", "count"), [(1, 0), (2, 8192 * 8192 + norm(8192))])
def test_perceptrons_of_independent_subnet_training_have_their_authors_sizes(hidden_layers, count):
    options = {"hidden_layers": hidden_layers, "norm": "batch", "head_norm": True}
    module = create_family("mlp", 35, width=8192, options=options)
    found = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4096)))
    assert set(found) == {"params"}
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == count + 4096 * 8192 + norm(8192) + 8192 * 35


@pytest.mark.parametrize(
    ("name", "stem", "num_classes", "count"),
    [
        # What torchvision's networks have.
        ("vgg11", "imagenet", 1000, 132_868_840),
        ("vgg13", "imagenet", 1000, 133_053_736),
        ("vgg16", "imagenet", 1000, 138_365_992),
        ("vgg19", "imagenet", 1000, 143_678_248),
        ("resnet50", "imagenet", 1000, 25_557_032),
        ("resnet101", "imagenet", 1000, 44_549_160),
        ("mobilenetv2", "imagenet", 1000, 3_504_872),
        ("densenet121", "imagenet", 1000, 7_978_856),
        # Added up above, and as rounded in the papers: 0.27M, 0.85M, 36.5M, 20.0M.
        ("vgg16", "cifar", 10, VGG16_CIFAR),
        ("vgg16", "cifar", 10, 14_728_266),
        ("vgg19", "cifar", 10, 20_040_522),
        ("resnet20", "cifar", 10, cifar_resnet(3)),
        ("resnet20", "cifar", 10, 269_722),
        ("resnet56", "cifar", 10, cifar_resnet(9)),
        ("resnet56", "cifar", 10, 853_018),
        ("wideresnet28_10", "cifar", 10, WIDE),
        ("wideresnet28_10", "cifar", 10, 36_479_194),
        # The 7x7 stem is a 3x3 one.
        ("resnet50", "cifar", 10, 25_557_032 - 64 * 3 * (49 - 9) - 2049 * 990),
        ("mobilenetv2", "cifar", 10, 3_504_872 - 1281 * 990),
        # No norm after the stem.
        ("densenet121", "cifar", 10, 7_978_856 - 64 * 3 * (49 - 9) - norm(64) - 1025 * 990),
        # 4.3M and 2.4M in the paper.
        ("conv2", "cifar", 10, 28 * 64 + 577 * 64 + 16_385 * 256 + 257 * 256 + 257 * 10),
        ("conv4", "cifar", 10, 28 * 64 + 577 * 64 + 577 * 128 + 1153 * 128 + 8193 * 256 + 257 * 256 + 257 * 10),
        ("conv6", "cifar", 10, 2_262_602),
        ("mlp", "cifar", 10, 3072 * 4096 + 4096 * 4096 + 2 * norm(4096) + 4097 * 10),
    ],
)
def test_parameter_counts(name, stem, num_classes, count):
    module = create_family(name, num_classes, stem=stem)
    params = shapes(module, 224 if stem == "imagenet" else 32)["params"]
    assert sum(prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


def test_parameter_count_of_lenet300():
    params = shapes(create_family("lenet300", 10), 28, 1)["params"]
    assert sum(prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 266_610
    assert params["dense2"]["kernel"].shape == (300, 100)


@pytest.mark.parametrize(
    ("name", "stem", "size", "sizes"),
    [
        ("vgg11", "cifar", 32, {"stage1_conv1": 32, "stage5_conv2": 2}),
        ("resnet20", "cifar", 32, {"stem": 32, "stage1_block1": 32, "stage2_block1": 16, "stage3_block3": 8}),
        ("resnet50", "cifar", 32, {"stem": 32, "stage1_block1": 32, "stage4_block3": 4}),
        ("resnet50", "imagenet", 224, {"stem": 112, "stage1_block1": 56, "stage4_block3": 7}),
        ("wideresnet28_10", "cifar", 32, {"stem": 32, "stage1_block4": 32, "stage3_block4": 8}),
        ("mobilenetv2", "cifar", 32, {"stem": 32, "stage2_block1": 32, "stage7_block1": 4}),
        ("mobilenetv2", "imagenet", 224, {"stem": 112, "stage2_block1": 56, "stage7_block1": 7}),
        pytest.param(
            *("densenet121", "cifar", 32, {"stem": 32, "stage1_layer6": 32, "stage4_layer16": 4}),
            marks=pytest.mark.full,
        ),
        pytest.param(
            *("densenet121", "imagenet", 224, {"stem": 112, "stage1_layer6": 56, "stage4_layer16": 7}),
            marks=pytest.mark.full,
        ),
        ("conv6", "cifar", 32, {"conv1": 32, "conv3": 16, "conv6": 8}),
    ],
)
def test_feature_maps_have_the_published_sizes(name, stem, size, sizes):
    module = create_family(name, 7, width=8, stem=stem)
    images = jnp.zeros((2, size, size, 3))

    def apply(variables, images):
        return module.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])

    logits, state = jax.eval_shape(apply, shapes(module, size), images)
    maps = {layer: state["intermediates"][layer]["__call__"][0].shape[1:3] for layer in sizes}
    assert maps == {layer: (n, n) for layer, n in sizes.items()}
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_layer_has_the_width_that_is_asked_for_and_the_dtype_reaches_every_layer(name):
    module = create_family(name, 3, width=12, dtype=jnp.bfloat16)
    variables = shapes(module)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    first = {"wideresnet28_10": ("stage1_block1", "conv1"), "mlp": ("dense1",), "lenet300": ("dense1",)}
    first |= dict.fromkeys(("conv2", "conv4", "conv6"), ("conv1",))
    first |= dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), ("stage1_conv1",))
    layer = variables["params"]
    for key in first.get(name, ("stem",)):
        layer = layer[key]
    assert layer["kernel"].shape[-1] == 12
    assert published_width(name) == FAMILIES[name].width
    text = str(jax.make_jaxpr(module.apply)(variables, jnp.zeros((2, 32, 32, 3))))
    results = re.findall(r":(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)", text)
    assert set(results) == {"bf16"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg12"}, "model.name=vgg12: must be one of vgg11, vgg13, "),
        ({"name": "resnet20", "stem": "imagenet"}, "model.stem=imagenet: must be cifar for resnet20"),
        ({"name": "lenet300", "stem": "imagenet"}, "model.stem=imagenet: must be cifar for lenet300"),
        ({"stem": "mnist"}, "model.stem=mnist: must be cifar or imagenet for vgg11"),
        ({"width": 0}, "model.width=0 and 10 classes: both must be at least 1"),
        ({"num_classes": 0}, "model.width=None and 0 classes: both must be at least 1"),
    ],
)
def test_what_no_family_has_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        create_family(**{"name": "vgg11", "num_classes": 10} | arguments)


def test_a_module_is_imported_when_it_is_asked_for():
    for family in FAMILIES.values():
        assert callable(getattr(import_module(f"loft_jax.models.families.{family.module}"), family.factory))


# Filter groups

# Inner, stream and whole.
FOUND = {
    "vgg11": (8, 0, 1),
    "vgg13": (10, 0, 1),
    "vgg16": (13, 0, 1),
    "vgg19": (16, 0, 1),
    "resnet20": (9, 0, 4),
    "resnet56": (27, 0, 4),
    "resnet50": (33, 4, 1),
    "resnet101": (67, 4, 1),
    "wideresnet28_10": (13, 3, 1),
    "mobilenetv2": (20, 5, 1),
    "densenet121": (120, 0, 1),
    "mlp": (2, 0, 1),
    "lenet300": (2, 0, 1),
    "conv2": (4, 0, 1),
    "conv4": (6, 0, 1),
    "conv6": (8, 0, 1),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full if n in DEEP else ()) for n in FOUND])
def test_kinds_of_filters(name):
    axes = network(name).discovery.axes
    assert tuple(sum(axis.kind == kind for axis in axes) for kind in ("inner", "stream", "whole")) == FOUND[name]
    assert axes[-1].reason == "the network's output"


@pytest.mark.parametrize(("name", "dense"), [("vgg11", 2), ("vgg16", 2)])
def test_the_large_dense_layers_of_a_vgg_are_groups(name, dense):
    groups = network(name, width=8, stem="imagenet", size=64).filter_groups()
    assert len(groups) == FOUND[name][0] + dense
    before = groups[-3]
    assert before.axes["params/dense1/kernel"] == (Place(0, repeats=((4, 64),)),)


def test_names_of_the_groups_of_a_wide_resnet_and_what_is_left_whole():
    wide = network("wideresnet28_10", width=16)
    blocks = [f"stage{stage}_block{block}/conv1" for stage in (1, 2, 3) for block in (1, 2, 3, 4)]
    assert [group.name for group in wide.filter_groups()] == ["stem", *blocks]
    assert list(wide.left_whole()) == [*(f"stage{stage}_block1/shortcut" for stage in (1, 2, 3)), "head"]


def test_a_shortcut_that_pads_leaves_its_stages_whole_and_says_so():
    reasons = network("resnet20").left_whole()
    assert list(reasons) == ["stem", "stage2_block1/conv2", "stage3_block1/conv2", "head"]
    assert {reason.rsplit(":", 1)[0] for reason in list(reasons.values())[:3]} == {"pad at cifar_resnet.py"}


def test_groups_of_a_bottleneck():
    by_name = {group.name: group for group in traced(BottleneckResNet((1, 2), 10, width=4)).filter_groups()}
    assert set(by_name["stage2_block2/conv1"].axes) == {
        *("params/stage2_block2/conv1/kernel", "params/stage2_block2/conv2/kernel"),
        *(f"params/stage2_block2/norm1/{name}" for name in ("scale", "bias")),
        *(f"batch_stats/stage2_block2/norm1/{name}" for name in ("mean", "var")),
    }
    assert "stage2_block2/conv3" not in by_name


@pytest.mark.full
def test_an_expansion_takes_its_depthwise_convolution_along():
    group = {group.name: group for group in network("mobilenetv2", width=8).filter_groups()}["stage3_block2/expand"]
    assert group.axes["params/stage3_block2/depthwise/kernel"] == 3
    assert group.axes["params/stage3_block2/project/kernel"] == 2
    assert group.axes["batch_stats/stage3_block2/depthwise_norm/var"] == 0


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full if n in DEEP else ()) for n in FAMILIES])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_narrow_network_equals_the_full_one_with_the_other_filters_silenced(name, stem):
    if stem not in FAMILIES[name].stems:
        pytest.skip("has one stem")
    size = 64 if stem == "imagenet" else 32
    net = network(name, width=SMALL.get(name, 8), stem=stem, num_classes=5, size=size)
    # Dropout draws other numbers at another width.
    modes = (False,) if name.startswith("vgg") and stem == "imagenet" else (False, True)
    assert_narrow_equals_silenced(net, train=modes, dtype="float64" if name in DEEP else jnp.float32)
