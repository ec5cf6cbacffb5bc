"""Networks as users write them: which groups are found, why others are whole, and that filters can be taken out."""

import dataclasses
import inspect

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import foreign_networks
from helpers.foreign_networks import NnxVGG
from helpers.silenced import assert_narrow_equals_silenced, assert_relative, filled, silence

from loft_jax import Place
from loft_jax.models.linen import LinenSource
from loft_jax.models.nnx import NnxSource
from loft_jax.models.traced import TracedNetwork

IMAGE = (8, 8, 3)
INNER = {
    "NnxVGG": {"convs/0": 8, "convs/1": 12, "hidden": 16},
    "UserDenseNet": {"Conv_0": 16, "Conv_1": 8, "Conv_2": 8, "Conv_3": 8},
    "SqueezeExcite": {"squeeze": 8, "expand2": 24},
    "LayerNorms": {"up": 32},
    "GroupNorms": {"second": 12},
    "Residual": {"inner1": 12, "inner2": 12},
    "sequential": {"layers_0": 8, "layers_3": 12, "layers_6": 16},
    "Scanned": {"blocks/inner": 12},
    "Transposed": {"down": 8, "up": 12, "turned": 16},
    "Separate": {"plain": 12, "reader": 4},
    "Attention": {"attention/value[1]": 8, "up": 24},
    "TwoAxes": {"pairs[0]": 6, "pairs[1]": 8, "both": 16},
    "Shared": {"inner": 8},
}


def vgg(rngs):
    return NnxVGG(5, rngs)


def network(name, **fields):
    if name == "NnxVGG":
        return TracedNetwork(NnxSource(vgg, name), IMAGE)
    return TracedNetwork(LinenSource(getattr(foreign_networks, name)(5, **fields)), IMAGE)


@pytest.mark.parametrize("name", INNER)
def test_inner_groups(name):
    assert {group.name: group.width for group in network(name).filter_groups()} == INNER[name]


@pytest.mark.parametrize("name", INNER)
def test_a_narrow_network_equals_the_full_one_with_the_other_filters_silenced(name):
    # Dropout draws other numbers at another width.
    assert_narrow_equals_silenced(network(name), train=(False,) if name == "Residual" else (False, True))


def test_without_dropout_the_stream_is_equal_in_training_too():
    assert_narrow_equals_silenced(network("Residual", rate=0.0), train=(True,))


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("Transposed", {"down": ("up",), "up": ("turned",), "turned": ("head",)}),
        ("TwoAxes", {"pairs[0]": ("both",), "pairs[1]": ("both",), "both": ("head",)}),
        ("SqueezeExcite", {"squeeze": ("excite",), "expand2": ("project2",)}),
    ],
)
def test_what_reads_the_filters_is_known_whatever_axis_it_has(name, readers):
    found = {group.name: group.readers for group in network(name).filter_groups()}
    assert {group: found[group] for group in readers} == {
        group: tuple(f"params/{layer}/kernel" for layer in layers) for group, layers in readers.items()
    }


@pytest.mark.parametrize("name", ["NnxVGG", "UserDenseNet", "Scanned", "Transposed", "TwoAxes"])
def test_a_scaled_branch_is_scaled_where_it_is_read(name):
    net = network(name)
    variables, (group, *_) = filled(net), net.filter_groups()
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, *IMAGE)), jnp.float32)
    scaled = net.with_branch_scales({group.name: 4.0}).apply(variables, images)
    by_hand = silence(variables, [group], {group.name: np.arange(group.width)}, factor=4)
    assert_relative(scaled, net.apply(by_hand, images), 1e-5)
    assert np.abs(scaled - net.apply(variables, images)).max() > 1e-3


def test_where_filters_lie_behind_a_flatten_and_in_concatenations():
    hidden = {group.name: group for group in network("NnxVGG").filter_groups()}["convs/1"]
    assert hidden.axes["params/hidden/kernel"] == (Place(0, repeats=((4, 12),)),)
    assert hidden.axes["batch_stats/norms/1/mean"] == 0
    second = {group.name: group for group in network("UserDenseNet").filter_groups()}["Conv_2"]
    assert dict(second.axes) == {
        "params/Conv_2/kernel": 3,
        "params/Conv_2/bias": 0,
        "params/BatchNorm_2/scale": (Place(0, offset=24),),
        "params/BatchNorm_2/bias": (Place(0, offset=24),),
        "batch_stats/BatchNorm_2/mean": (Place(0, offset=24),),
        "batch_stats/BatchNorm_2/var": (Place(0, offset=24),),
        "params/Conv_3/kernel": (Place(2, offset=24),),
        "params/Dense_0/kernel": (Place(0, offset=24, repeats=((4, 40),)),),
    }


def test_a_depthwise_convolution_belongs_to_the_group_that_it_filters():
    group = {group.name: group for group in network("SqueezeExcite").filter_groups()}["expand2"]
    assert group.axes["params/depthwise2/kernel"] == 3
    assert group.kernel == "params/expand2/kernel"


def test_blocks_of_a_scan_have_their_filters_behind_the_axis_of_blocks():
    (group,) = network("Scanned").filter_groups()
    assert dict(group.axes) == {
        "params/blocks/inner/kernel": 4,
        "params/blocks/inner/bias": 1,
        "params/blocks/outer/kernel": 3,
    }


@pytest.mark.parametrize(
    ("name", "layer", "kind", "reason", "line"),
    [
        ("LayerNorms", "stem", "stream", "computed by 2 layers together: down, stem", None),
        ("GroupNorms", "first[1]", "whole", "reduce_sum at foreign_networks.py:{} runs over them", "nn.GroupNorm("),
        (
            *("GroupNorms", "first[0]", "whole"),
            "with 2 of them the network computes something else: reshape at foreign_networks.py:{} returns the shape "
            "(2, 8, 8, 4, 2) where (2, 8, 8, 2, 4) is expected",
            "nn.GroupNorm(",
        ),
        ("Residual", "stem", "stream", "computed by 3 layers together: outer1, outer2, stem", None),
        ("SqueezeExcite", "expand", "stream", "computed by 2 layers together: excite, expand", None),
        ("Separate", "halves", "whole", "split at foreign_networks.py:{}", "jnp.split("),
        ("Separate", "weights", "whole", "reduce_max at foreign_networks.py:{} runs over them", "jax.nn.softmax("),
        ("Separate", "ordered", "whole", "their order matters to sort at foreign_networks.py:{}", "jnp.sort("),
        ("Separate", "normed", "whole", "reduce_sum at foreign_networks.py:{} runs over them", "nn.LayerNorm("),
        ("Separate", "pieces", "whole", "a grouped conv_general_dilated at foreign_networks.py:{}", 'name="grouped"'),
        ("Separate", "padded", "whole", "pad at foreign_networks.py:{}", "jnp.pad("),
        ("Separate", "strided", "whole", "slice at foreign_networks.py:{}", "[:, ::2]"),
        ("Separate", "looped", "whole", "while at foreign_networks.py:{}", "while_loop("),
        (
            *("Separate", "heads[1]", "whole"),
            "with 2 of them the network cannot be built: Cannot concatenate arrays",
            None,
        ),
        (
            *("Separate", "scaled", "whole"),
            "with 4 of them the network computes something else: mul at foreign_networks.py:{} takes the number 0.5 "
            "where the full network takes 0.35355338",
            "scaled *",
        ),
        (
            *("Attention", "attention/query[1]", "stream"),
            *("computed by 2 layers together: attention/key, attention/query", None),
        ),
        ("Separate", "head", "whole", "the network's output", None),
    ],
)
def test_what_is_left_whole_says_why_and_where(name, layer, kind, reason, line):
    if line:
        (number,) = lines_of(getattr(foreign_networks, name), line)
        reason = reason.format(number)
    (axis,) = [axis for axis in network(name).discovery.axes if axis.name == layer]
    assert axis.kind == kind
    assert axis.reason.startswith(reason), axis.reason


def lines_of(network, text):
    lines, first = inspect.getsourcelines(network)
    return [first + i for i, line in enumerate(lines) if text in line]


class Equal(nn.Module):
    """Two layers of one width by accident, next to each other; and one output taken for depthwise by some."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="one")(x))
        x = nn.relu(nn.Conv(8, (3, 3), name="two")(x))
        x = nn.Conv(1, (1, 1), name="single")(x)
        return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1))


def test_equal_lengths_make_no_group():
    net = TracedNetwork(LinenSource(Equal(8)), IMAGE)
    touched = {group.name: set(group.axes) for group in net.filter_groups()}
    assert touched["one"] == {"params/one/kernel", "params/one/bias", "params/two/kernel"}
    assert touched["two"] == {"params/two/kernel", "params/two/bias", "params/single/kernel"}
    assert_narrow_equals_silenced(net)


class Accidental(nn.Module):
    """A condition on a width, as networks with shortcuts have: with half of `one` it holds, and the module fails."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), name="one")(x))
        y = nn.relu(nn.Conv(8, (3, 3), name="two")(x))
        y = x + y if x.shape[-1] == 8 else y
        y = nn.relu(nn.Conv(6, (3, 3), name="three")(y))
        return nn.Dense(self.num_classes, name="head")(y.mean(axis=(1, 2)))


def test_of_groups_that_fail_the_others_are_kept():
    net = TracedNetwork(LinenSource(Accidental(5)), IMAGE)
    assert [group.name for group in net.filter_groups()] == ["two", "three"]
    (number,) = lines_of(Accidental, "y = x + y if")
    assert net.left_whole()["one"] == (
        "with 8 of them the network computes something else: it does add at "
        f"test_foreign.py:{number} where the full network does conv_general_dilated at test_foreign.py:{number + 1}"
    )


def test_equal_sources_are_traced_once():
    assert network("UserDenseNet").discovery is network("UserDenseNet").discovery
    assert network("UserDenseNet", growth=4).discovery is not network("UserDenseNet").discovery
    assert dataclasses.replace(network("Residual"), dtype=jnp.bfloat16).discovery is network("Residual").discovery
