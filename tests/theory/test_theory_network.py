"""The theorem's network against its definition: patches, gradients against autodiff, kernels against sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loft_jax.theory.config import TheoryConfig
from loft_jax.theory.descent import Rates, Task, loft_round
from loft_jax.theory.inputs import make_inputs, patches
from loft_jax.theory.network import empirical_kernel, hidden, infinite_kernels, pull_back

KAPPA = 0.3


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def inputs_of(data, samples=16, **settings):
    return make_inputs(TheoryConfig(theory={"data": data, "samples": samples, **settings}))


def drawn(inputs, filters, seed=0, *, per_filter=False):
    rng = np.random.default_rng(seed)
    pixels, size = inputs.patches.shape[1:]
    signs = rng.choice([-1.0, 1.0], size=(1 if per_filter else pixels, filters))
    return signs, KAPPA * rng.normal(size=(size, filters))


def output(patches, signs, weights):
    """The theorem's formula, as it stands."""
    inner = jnp.einsum("ijk,kr->ijr", patches, weights)
    return jnp.sum(signs * jax.nn.relu(inner), axis=(1, 2)) / np.sqrt(weights.shape[1])


def close(found, expected, relative=1e-12):
    return np.linalg.norm(found - expected) <= relative * np.linalg.norm(expected)


def test_patches_go_round_the_edge_and_hold_all_channels():
    images = np.array([[[1, 2, 3], [10, 20, 30]]])
    assert patches(images, 2).tolist() == [[[1, 2, 10, 20], [2, 3, 20, 30], [3, 1, 30, 10]]]


@pytest.mark.parametrize("data", ["digits", "gaussian"])
def test_inputs_are_normalised_labelled_and_of_the_seed(data):
    inputs = inputs_of(data)
    assert np.allclose(np.sum(inputs.patches**2, axis=(1, 2)), 1, rtol=1e-12)
    assert set(inputs.labels) == {-1.0, 1.0}
    assert inputs.patches.dtype == inputs.labels.dtype == np.float64
    again = inputs_of(data)
    assert np.array_equal(inputs.patches, again.patches)
    other = make_inputs(TheoryConfig(seed=1, theory={"data": data}))
    assert not np.allclose(inputs.patches, other.patches)


@pytest.mark.parametrize("per_filter", [False, True])
def test_the_output_and_its_gradient_are_those_of_the_formula(per_filter):
    inputs = inputs_of("digits")
    signs, weights = drawn(inputs, 100, per_filter=per_filter)
    layer = hidden(inputs.patches, signs, weights)
    assert close(layer.parts.sum(axis=1), output(inputs.patches, signs, weights))

    def loss(weights):
        return 0.5 * jnp.sum((output(inputs.patches, signs, weights) - inputs.labels) ** 2)

    residuals = (layer.parts.sum(axis=1) - inputs.labels)[:, None]
    assert close(pull_back(inputs.patches, signs, layer.active, residuals), jax.grad(loss)(weights))


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize(("output_scale", "gradient_scale"), [(2.0, 1.0), (2.0, 2.0), (1.0, 1.0)])
def test_a_round_is_that_of_workers_apart_by_autodiff(local_steps, output_scale, gradient_scale):
    inputs = inputs_of("gaussian")
    signs, start = drawn(inputs, 40)
    masks = (np.random.default_rng(1).random((3, 40)) < 0.5).astype(float)
    assert set(masks.sum(axis=0)) == {0, 1, 2, 3}
    eta = 0.3

    def masked_output(weights, mask):
        inner = jnp.einsum("ijk,kr->ijr", inputs.patches, weights)
        return output_scale * jnp.sum(mask * signs * jax.nn.relu(inner), axis=(1, 2)) / np.sqrt(40)

    def loss(weights, mask):
        return 0.5 * jnp.sum((masked_output(weights, mask) - inputs.labels) ** 2)

    updates = []
    for mask in masks:
        own = start
        for _ in range(local_steps):
            # Differentiating the worker's loss scales the gradient as the output.
            own = own - eta * gradient_scale / output_scale * jax.grad(loss)(own, mask)
        updates.append(own - start)
    keepers = masks.sum(axis=0)
    expected = np.array(start)
    for r in range(40):
        if keepers[r]:
            expected[:, r] += sum(masks[s, r] * updates[s][:, r] for s in range(3)) / keepers[r]

    rates = Rates(KAPPA, 0.5, eta, eta, output_scale, gradient_scale)
    found = loft_round(Task(inputs.patches, inputs.labels, signs), start, masks, rates, local_steps)
    assert close(found - start, expected - start)
    assert np.array_equal(found[:, keepers == 0], start[:, keepers == 0])


@pytest.mark.parametrize("data", ["digits", "gaussian"])
def test_the_smallest_eigenvalue_is_that_of_infinite_width_within_5_percent(data):
    inputs = inputs_of(data)
    limit = infinite_kernels(inputs.patches, KAPPA).eigenvalues[0]
    smallest = [
        np.linalg.eigvalsh(empirical_kernel(inputs.patches, *drawn(inputs, 2**14, seed)))[0] for seed in range(3)
    ]
    assert np.abs(np.array(smallest) / limit - 1).max() < 0.05


@pytest.mark.parametrize("per_filter", [False, True])
def test_kernels_of_infinite_width_are_means_over_initial_weights(per_filter):
    inputs = inputs_of("digits", samples=5)
    expected = infinite_kernels(inputs.patches, KAPPA, sign_per_filter=per_filter)
    tangents, parts = [], []
    for seed in range(12):
        signs, weights = drawn(inputs, 4096, seed, per_filter=per_filter)
        tangents.append(empirical_kernel(inputs.patches, signs, weights))
        parts.append(np.asarray(hidden(inputs.patches, signs, weights).parts))
    outputs = [part @ part.T for part in parts]
    for samples, limit in ((tangents, expected.tangent), (outputs, expected.outputs)):
        error = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
        assert np.abs((np.mean(samples, axis=0) - limit) / error).max() < 6
        assert np.abs(limit).max() > 100 * error.max()


def test_the_empirical_kernel_is_of_inner_products_of_gradients():
    inputs = inputs_of("digits", samples=4)
    signs, weights = drawn(inputs, 10)
    gradients = np.asarray(jax.jacobian(lambda w: output(inputs.patches, signs, w))(weights)).reshape(4, -1)
    assert close(empirical_kernel(inputs.patches, signs, weights), gradients @ gradients.T)


def test_a_patch_of_zeros_has_no_angle_and_adds_nothing():
    images = np.zeros((2, 1, 4))
    images[0, 0, 0], images[1, 0, 1] = 1, 1
    found = infinite_kernels(patches(images, 1), KAPPA)
    assert np.array_equal(found.tangent, 0.5 * np.eye(2))
    assert np.allclose(found.outputs, KAPPA**2 / 2 * np.eye(2), rtol=1e-12)
