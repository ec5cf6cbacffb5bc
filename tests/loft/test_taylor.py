"""Scores to first order against the derivative of a gate that is written into the network."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.own_networks import Declared, Undeclared
from helpers.tiny import MODEL, Run, config

from loft_jax.data.batches import normalise
from loft_jax.devices.mesh import make_mesh
from loft_jax.loft.orders import norm_order
from loft_jax.loft.taylor import TaylorScorer
from loft_jax.models.declared import make_network
from loft_jax.models.linen import LinenSource

DENSE = Declared(num_classes=3)


def gated_dense(variables, gates, images):
    """The network again, with a factor on each activation."""
    x = images.reshape(len(images), -1)
    for name in ("first", "second"):
        layer = variables["params"][name]
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"]) * gates[name]
    return x @ variables["params"]["head"]["kernel"] + variables["params"]["head"]["bias"]


def gated_resnet(variables, gates, images):
    """The network with what reads the hidden filters of a block multiplied by a factor for each of them."""
    params = dict(variables["params"])
    for group, gate in gates.items():
        block = params[group.replace("/", "_")]
        params[group.replace("/", "_")] = block | {"conv2": {"kernel": block["conv2"]["kernel"] * gate[:, None]}}
    return MODEL.apply({**variables, "params": params}, images)


def expected(run, gated, groups, count):
    """Mean over batches of |d loss / d gate|, by hand."""
    data, totals = run.dataset, {group.name: 0 for group in groups}
    settings = SimpleNamespace(seed=run.config.seed, data=run.config.data, train=SimpleNamespace(norm_batches=count))
    ones = {group.name: jnp.ones(group.width) for group in groups}

    @jax.jit
    def derivatives(images, labels):
        def loss(gates):
            logits = gated(run.state.variables, gates, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(ones)

    for batch in norm_order(settings, len(data.train_labels)):
        images = normalise(jnp.asarray(data.train_images[batch]), *data.channel_statistics)
        for name, values in derivatives(images, data.train_labels[batch]).items():
            totals[name] += np.abs(values) / count
    return totals


@pytest.mark.parametrize(
    ("model", "gated", "mesh"),
    [
        (DENSE, gated_dense, {"mesh__worker": 4}),
        (DENSE, gated_dense, {"mesh__worker": 2, "mesh__data": 2}),
        (DENSE, gated_dense, {"mesh__worker": 1}),
        pytest.param(MODEL, gated_resnet, {"mesh__worker": 4}, marks=pytest.mark.full),
    ],
)
def test_scores_are_the_derivatives_of_gates_on_the_filters(model, gated, mesh):
    run = Run(config(loft__partition="none", **mesh), model=model)
    groups, count = model.filter_groups(), 5
    found = TaylorScorer(run.config, model, groups, run.dataset, run.mesh, count)(run.state.variables)
    wanted = expected(run, gated, groups, count)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.count_nonzero(values) > len(values) / 2
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_scores_depend_on_seed_and_count_alone():
    """And not on augmentation, label smoothing, or the number of batches for norms."""
    run = Run(config(loft__partition="none"), model=DENSE)

    def scores(count=3, **settings):
        changed = config(loft__partition="none", **settings)
        scorer = TaylorScorer(changed, DENSE, DENSE.filter_groups(), run.dataset, make_mesh(changed), count)
        return np.concatenate(list(scorer(run.state.variables).values()))

    first = scores()
    settings = {"data__augment": False, "train__norm_batches": 7, "optimizer__label_smoothing": 0.1}
    assert np.array_equal(first, scores(**settings))
    assert not np.array_equal(first, scores(seed=1))
    assert not np.array_equal(first, scores(count=4))


def test_a_traced_network_has_the_scores_of_the_same_declared():
    run = Run(config(loft__partition="none"), model=DENSE)
    network = make_network(LinenSource(Undeclared(num_classes=3)), run.dataset.image_shape, jnp.float32)
    scorers = (TaylorScorer(run.config, m, m.filter_groups(), run.dataset, run.mesh, 3) for m in (DENSE, network))
    one, other = (scorer(run.state.variables) for scorer in scorers)
    assert {group.name: group.readers for group in network.filter_groups()} == {
        "first": ("params/second/kernel",),
        "second": ("params/head/kernel",),
    }
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-5)
