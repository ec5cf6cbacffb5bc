"""The command that shows filter groups: its table, its figure, and the Python functions behind it."""

from xml.etree import ElementTree

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers import TESTS
from helpers.own_networks import Listed, Plain, Small, Summed

from loft_jax import create_model, explain_filter_groups, find_filter_groups
from loft_jax.config.config import Config
from loft_jax.errors import UserError
from loft_jax.groups.__main__ import check_figure, run

FILE = f"{TESTS}/helpers/own_networks.py"
IMAGES = jax.ShapeDtypeStruct((5, 8, 8, 1), jnp.float32)


def test_the_groups_of_a_module_are_found_whatever_it_is():
    linen = find_filter_groups(Small(10), IMAGES)
    assert [(group.name, group.width) for group in linen] == [("Conv_0", 8), ("Conv_1", 16), ("Dense_0", 16)]
    assert linen[0].axes == {
        "batch_stats/BatchNorm_0/mean": 0,
        "batch_stats/BatchNorm_0/var": 0,
        "params/BatchNorm_0/bias": 0,
        "params/BatchNorm_0/scale": 0,
        "params/Conv_0/bias": 0,
        "params/Conv_0/kernel": 3,
        "params/Conv_1/kernel": 2,
    }
    (behind_the_flatten,) = linen[1].axes["params/Dense_0/kernel"]
    assert behind_the_flatten.repeats == ((4, 16),)
    module = Listed(10, nnx.Rngs(0))
    for model in (module, lambda rngs: Listed(10, rngs)):
        found = find_filter_groups(model, jnp.zeros((1, 8, 8, 1)))
        assert [(group.name, group.width) for group in found] == [("convs/0", 8), ("convs/1", 16), ("hidden", 16)]
    with pytest.raises(TypeError, match="int: must be a Flax Linen module"):
        find_filter_groups(3, IMAGES)


def test_the_reasons_name_the_operation_and_the_users_line():
    explanation = explain_filter_groups(Summed(10), IMAGES)
    assert explanation.groups == ()
    reasons = {axis.name: axis.reason for axis in explanation.axes}
    assert reasons["Dense_0"].startswith("reduce_sum at own_networks.py:")
    assert reasons["Dense_1"] == "the network's output"
    assert str(explanation).endswith("\n0 filter groups, found by tracing; 2 layers are left whole")


def test_parameters_and_flops_are_those_of_the_layers_that_filters_touch():
    by_name = {axis.name: axis for axis in explain_filter_groups(Plain(10), IMAGES).axes}
    assert by_name["Dense_0"].parameters == 64 * 32 + 32 + 32 * 16
    assert by_name["Dense_0"].flops == 2 * (64 * 32 + 32 * 16)
    assert by_name["Dense_1"].kind == "whole"  # Linen numbers the outer layer first.


def test_a_network_that_declares_its_groups_keeps_their_names():
    explanation = explain_filter_groups(create_model("preresnet20", 10, width=4), jnp.zeros((1, 16, 16, 3)))
    assert explanation.declared
    inner = [explanation.name(axis) for axis in explanation.axes if axis.kind == "inner"]
    assert inner == [group.name for group in explanation.groups]


def test_the_command_prints_a_table_and_draws_a_figure(tmp_path, capsys):
    config = Config.model_validate({"model": {"name": f"{FILE}:Small"}, "mesh": {"cpu_devices": 4}})
    figure = tmp_path / "groups.svg"
    run(config, str(figure))
    said = capsys.readouterr().out
    assert "Conv_1" in said
    assert "params/Dense_0/kernel[0 x4]" in said
    assert "3 filter groups, found by tracing; 1 layers are left whole" in said
    drawn = ElementTree.parse(figure).getroot()
    texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert {"Conv_0", "Conv_1", "Dense_0", "Dense_1"} <= set(texts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("groups.png", "--figure groups.png: must end in .svg; try groups.svg"),
        ("no/such/groups.svg", "--figure no/such/groups.svg: its directory does not exist"),
        ("", "--figure '': is empty"),
    ],
)
def test_a_figure_that_cannot_be_written_is_refused_first(name, message):
    with pytest.raises(UserError) as refusal:
        check_figure(name)
    assert str(refusal.value).startswith(message)


def test_names_in_a_figure_are_escaped():
    class Hostile(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="<script>&")(x.reshape(len(x), -1))
            return nn.Dense(3)(nn.relu(x))

    from loft_jax.groups.figure import draw

    ElementTree.fromstring(draw(explain_filter_groups(Hostile(), IMAGES), "<&>"))
