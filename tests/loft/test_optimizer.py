"""Schedules by literal values, and the update against the formula."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from loft_jax.config.config import Config
from loft_jax.loft.optimizer import learning_rate_schedule, make_update_rule
from loft_jax.loft.state import State


def schedule(**optimizer):
    settings = {"learning_rate": 0.8, **optimizer}
    return learning_rate_schedule(
        Config(optimizer=settings, train={"rounds": 10}, loft={"local_steps": 10}, data={"batch_size": 8})
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, {0: 0.8, 50: 0.8, 99: 0.8}),
        ({"schedule": "cosine"}, {0: 0.8, 25: 0.8 * (1 + np.sqrt(0.5)) / 2, 50: 0.4, 100: 0.0}),
        ({"schedule": "step"}, {0: 0.8, 49: 0.8, 50: 0.08, 74: 0.08, 75: 0.008, 99: 0.008}),
        ({"schedule": "step", "milestones": "10,30", "decay": 0.5}, {9: 0.8, 10: 0.4, 29: 0.4, 30: 0.2, 99: 0.2}),
        ({"schedule": "step", "milestones": 40, "warmup_steps": 20}, {19: 0.8, 39: 0.8, 40: 0.08, 99: 0.08}),
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 0.8, 99: 0.8}),
        ({"schedule": "constant", "warmup_steps": 1}, {0: 0.8, 1: 0.8}),
        ({"schedule": "cosine", "warmup_steps": 20}, {0: 0.04, 19: 0.8, 20: 0.8, 60: 0.4, 100: 0.0}),
        ({"schedule": "step", "warmup_steps": 20}, {19: 0.8, 49: 0.8, 50: 0.08, 75: 0.008}),
        ({"schedule": "cosine", "warmup_steps": 400}, {0: 0.002, 99: 0.2}),
        ({"schedule": "step", "warmup_steps": 100}, {0: 0.008, 99: 0.8}),
    ],
)
def test_the_learning_rate_follows_the_schedule(settings, expected):
    rate = schedule(**settings)
    for step, value in expected.items():
        np.testing.assert_allclose(float(rate(step)), value, rtol=1e-5, atol=1e-7, err_msg=f"step {step}")


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 16, 500, 501, 503])
def test_steps_of_the_learning_rate_are_never_early(total):
    """The definition: a step is past a milestone when its share of the run is at least that."""
    config = Config(
        optimizer={"learning_rate": 1.0, "schedule": "step"}, train={"rounds": total}, loft={"local_steps": 1}
    )
    rate = learning_rate_schedule(config)
    for step in range(total):
        passed = (2 * step >= total) + (4 * step >= 3 * total)
        np.testing.assert_allclose(float(rate(step)), 0.1**passed, rtol=1e-5, err_msg=f"step {step} of {total}")


@pytest.mark.parametrize("total", [2, 4, 6, 10, 14, 22, 8000])
def test_even_totals_step_where_they_always_did(total):
    config = Config(optimizer={"schedule": "step"}, train={"rounds": total}, loft={"local_steps": 1})
    before = optax.piecewise_constant_schedule(0.1, {round(total / 2): 0.1, round(total * 3 / 4): 0.1})
    rate = learning_rate_schedule(config)
    for step in {0, total - 1, *(max(0, round(total * share) + i) for share in (0.5, 0.75) for i in (-1, 0))}:
        assert float(rate(step)) == float(before(step)), step


PARAMS = {"layer": {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([3.0, 0.5])}}
GRADIENTS = {"layer": {"kernel": jnp.array([1.0, 0.25]), "bias": jnp.array([1.0, -2.0])}}


def rule(loft=None, **optimizer):
    return make_update_rule(Config(optimizer=optimizer, loft=loft or {}))


def test_an_update_is_sgd_with_momentum_and_decays_kernels_only():
    momentum = {"layer": {"kernel": jnp.array([0.5, 0.0]), "bias": jnp.array([0.25, 0.0])}}
    state = State(params=PARAMS, momentum=momentum)
    after = rule(momentum=0.5, weight_decay=0.25).update_parameters(GRADIENTS, state, jnp.float32(0.5), 0)
    momentum, params = after["momentum"]["layer"], after["params"]["layer"]
    assert momentum["kernel"][0] == 0.5 * 0.5 + 1 + 0.25 * 2
    assert momentum["bias"][0] == 0.5 * 0.25 + 1
    assert params["kernel"][0] == 2 - 0.5 * 1.75
    assert params["bias"][0] == 3 - 0.5 * 1.125


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_the_published_formula(name, reset):
    beta1, beta2, epsilon, decay, rate, steps = 0.8, 0.95, 1e-6, 0.1, 0.05, 5
    loft = {"momentum": "reset" if reset else "carry", "local_steps": 2}
    update = rule(loft, name=name, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay)
    state = State(params=PARAMS)
    flat = {path: np.asarray(PARAMS["layer"][path], np.float64) for path in ("kernel", "bias")}
    m, v = ({path: np.zeros(2) for path in flat} for _ in range(2))
    for step in range(steps):
        count = step % 2 if reset else step
        if count == 0:
            state = state.with_zero_moments(update.moments)
            m, v = ({path: np.zeros(2) for path in flat} for _ in range(2))
        gradients = {"layer": {path: GRADIENTS["layer"][path] * (step + 1) for path in flat}}
        state = replace(state, **update.update_parameters(gradients, state, rate, jnp.int32(step)))
        for path, weights in flat.items():
            gradient = np.asarray(gradients["layer"][path], np.float64)
            penalty = decay * weights if path == "kernel" else 0
            if name == "adam":
                gradient = gradient + penalty
            m[path] = beta1 * m[path] + (1 - beta1) * gradient
            v[path] = beta2 * v[path] + (1 - beta2) * gradient**2
            first, second = m[path] / (1 - beta1 ** (count + 1)), v[path] / (1 - beta2 ** (count + 1))
            direction = first / (np.sqrt(second) + epsilon) + (penalty if name == "adamw" else 0)
            flat[path] = weights - rate * direction
    for path, weights in flat.items():
        np.testing.assert_allclose(state.params["layer"][path], weights, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_pruned_weights_stay_zero_and_the_others_are_as_without_them(name):
    update, here = rule(name=name), jnp.array([True, False])
    kept = {"layer": {"kernel": here, "bias": here}}
    start = {"layer": {path: jnp.where(here, leaf, 0) for path, leaf in PARAMS["layer"].items()}}
    pruned = State(params=start, kept=kept).with_zero_moments(update.moments)
    alone = State(params=jax.tree.map(lambda leaf: leaf[:1], start)).with_zero_moments(update.moments)
    for step in range(3):
        pruned = replace(pruned, **update.update_parameters(GRADIENTS, pruned, 0.1, jnp.int32(step)))
        own = jax.tree.map(lambda leaf: leaf[:1], GRADIENTS)
        alone = replace(alone, **update.update_parameters(own, alone, 0.1, jnp.int32(step)))
    for collection in ("params", *update.moments):
        for path in ("kernel", "bias"):
            assert getattr(pruned, collection)["layer"][path][0] == getattr(alone, collection)["layer"][path][0]
            assert pruned.params["layer"][path][1] == 0


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_in_float64_pruned_weights_train_as_a_network_that_never_had_them(name):
    """Fifty steps of a tiny perceptron, against the same with only the kept weights as its parameters."""
    update, rng = rule(name=name, weight_decay=0.01), np.random.default_rng(0)
    with jax.enable_x64(True):
        kernels = {"hidden": rng.normal(size=(6, 5)), "head": rng.normal(size=(5, 3))}
        kept = {path: rng.random(leaf.shape) < 0.4 for path, leaf in kernels.items()}
        images, targets = rng.normal(size=(8, 6)), rng.normal(size=(8, 3))

        def loss(params):
            return ((jnp.tanh(images @ params["hidden"]["kernel"]) @ params["head"]["kernel"] - targets) ** 2).mean()

        def scattered(params):
            wide = {
                path: jnp.zeros(leaf.shape).at[kept[path]].set(params[path]["kernel"]) for path, leaf in kernels.items()
            }
            return loss({path: {"kernel": leaf} for path, leaf in wide.items()})

        def train(loss, params, kept):
            state = State(params=params, kept=kept, round=None).with_zero_moments(update.moments)
            step = jax.jit(lambda state, n: update.update_parameters(jax.grad(loss)(state.params), state, 0.05, n))
            for number in range(50):
                state = replace(state, **step(state, jnp.int32(number)))
            return state.params

        masked = {path: {"kernel": jnp.where(kept[path], leaf, 0)} for path, leaf in kernels.items()}
        with_zeros = train(loss, masked, {path: {"kernel": jnp.asarray(mask)} for path, mask in kept.items()})
        without = train(
            scattered, {path: {"kernel": jnp.asarray(leaf[kept[path]])} for path, leaf in kernels.items()}, None
        )
        for path, mask in kept.items():
            found = with_zeros[path]["kernel"]
            assert found.dtype == jnp.float64
            assert (found[~mask] == 0).all()
            np.testing.assert_allclose(found[mask], without[path]["kernel"], rtol=1e-11, atol=1e-13)
            assert np.abs(found[mask] - kernels[path][mask]).max() > 0.01
