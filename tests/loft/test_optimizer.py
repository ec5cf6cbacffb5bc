"""Schedules by literal values, and the update against the formula."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from loft_jax.config.config import Config
from loft_jax.loft.optimizer import learning_rate_schedule, make_sgd, sgd_step


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


def test_an_update_is_sgd_with_momentum_and_decays_kernels_only():
    params = {"layer": {"kernel": jnp.array([2.0]), "bias": jnp.array([3.0])}}
    momentum = {"layer": {"kernel": jnp.array([0.5]), "bias": jnp.array([0.25])}}
    gradients = {"layer": {"kernel": jnp.array([1.0]), "bias": jnp.array([1.0])}}
    sgd = make_sgd(Config(optimizer={"momentum": 0.5, "weight_decay": 0.25}).optimizer)
    params, momentum = sgd_step(sgd, gradients, momentum, params, jnp.float32(0.5))
    assert momentum["layer"]["kernel"].tolist() == [0.5 * 0.5 + 1 + 0.25 * 2]
    assert momentum["layer"]["bias"].tolist() == [0.5 * 0.25 + 1]
    assert params["layer"]["kernel"].tolist() == [2 - 0.5 * 1.75]
    assert params["layer"]["bias"].tolist() == [3 - 0.5 * 1.125]
