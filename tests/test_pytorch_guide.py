"""The guide for users of PyTorch: its conversion against a network that is written as torchvision's, in NCHW."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT
from jax import lax

from loft_jax import create_model
from loft_jax.filters import kept_count

PAGE = (ROOT / "docs/guides/pytorch.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    """The functions of the example, without what it does with them."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code.partition("\nmodel = ")[0], "docs/guides/pytorch.md", "exec"), names)
    return names


def forward_as_torchvision(state, x):
    """Logits of torchvision's BasicBlock networks from a state_dict; x is [batch, channels, height, width]."""

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        pad = (weight.shape[-1] // 2,) * 2
        numbers = ("NCHW", "OIHW", "NCHW")
        return lax.conv_general_dilated(x, weight, (stride, stride), (pad, pad), dimension_numbers=numbers)

    def norm(name, x):
        mean, var, weight, bias = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * weight + bias

    x = jax.nn.relu(norm("bn1", conv("conv1", x, 2)))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
    blocks = sorted({name.rpartition(".conv1")[0] for name in state if name.startswith("layer") and ".conv1" in name})
    for block in blocks:
        stride = 2 if block.endswith(".0") and block != "layer1.0" else 1
        y = jax.nn.relu(norm(f"{block}.bn1", conv(f"{block}.conv1", x, stride)))
        y = norm(f"{block}.bn2", conv(f"{block}.conv2", y))
        if f"{block}.downsample.0.weight" in state:
            x = norm(f"{block}.downsample.1", conv(f"{block}.downsample.0", x, stride))
        x = jax.nn.relu(x + y)
    return x.mean(axis=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.fixture(scope="module")
def model():
    return create_model("resnet18", num_classes=5, width=4, stem="imagenet")


@pytest.fixture(scope="module")
def variables(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.6, leaf.shape).astype(np.float32), shapes)


def test_converted_weights_give_the_same_logits(page, model, variables):
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    logits = jax.jit(forward_as_torchvision)(page["to_torch"](variables), images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, images), rtol=1e-4)


def test_weights_come_back_as_they_were(page, variables):
    back = page["from_torch"](page["to_torch"](variables), variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_names_and_shapes_are_torchvisions(page):
    """Its state_dict of resnet34 has 36 convolutions, a norm for each with four arrays and a counter, and a head."""
    model = create_model("resnet34", num_classes=1000, stem="imagenet")
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    state = page["to_torch"](jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like))
    assert len(state) == 36 + 4 * 36 + 2
    expected = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    }
    expected |= {"layer3.5.conv2.weight": (256, 256, 3, 3), "layer4.0.downsample.1.bias": (512,)}
    expected |= {"fc.weight": (1000, 512), "fc.bias": (1000,)}
    for name, shape in expected.items():
        assert state[name].shape == shape


def test_what_the_page_says_of_counts_and_statistics_is_so():
    assert (kept_count(10, 0.75), int(10 * (1 - 0.75))) == (3, 2)
    model, images = create_model("preresnet20", 10, width=4), np.random.default_rng(0).normal(size=(4, 8, 8, 1))
    variables = model.init(jax.random.key(0), images)
    _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    stem = model.apply(variables, images, capture_intermediates=True)[1]["intermediates"]["stem"]["__call__"][0]
    found = updated["batch_stats"]["stage1_block1"]["norm1"]["var"]
    np.testing.assert_allclose(found, 0.9 + 0.1 * np.var(stem, axis=(0, 1, 2)), rtol=1e-4)
    assert not np.any(variables["params"]["head"]["bias"])
