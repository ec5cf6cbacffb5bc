"""What the ResNets compute: against a plain reference, in other dtypes, and with the statistics of their norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ModifyScopeVariableError
from helpers.tiny_resnets import IMAGES, feature_maps, logits, tiny, trained
from jax import lax

from loft_jax.models.resnet import ResNet

NHWC = ("NHWC", "HWIO", "NHWC")


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
