"""LoFT under masks against gradient descent: where they are one, what masks are, what is compiled, and the limit."""

import math

import jax
import numpy as np
import pytest
from scipy.stats import binom

from loft_jax.theory.config import TheoryConfig
from loft_jax.theory.descent import Rates, Shape, compare, draw_masks
from loft_jax.theory.inputs import make_inputs
from loft_jax.theory.limit import MaskMoments, lazy_limit, trained_probability
from loft_jax.theory.network import infinite_kernels

SHAPE = Shape(48, 3, 10, 1, 4, disjoint=False, sign_per_filter=False)
INPUTS = make_inputs(TheoryConfig())


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def rates(xi=0.5, eta=0.2, gd_step=None, output_scale=None):
    step = eta * trained_probability(3, xi) if gd_step is None else gd_step
    values = (0.3, xi, eta, step, 1 / xi if output_scale is None else output_scale, 1.0)
    return Rates(*map(np.float64, values))


def compared(shape=SHAPE, seed=0, **settings):
    return jax.tree.map(np.asarray, compare(shape, jax.random.key(seed), *INPUTS, rates(**settings)))


@pytest.mark.parametrize("workers", [1, 3])
def test_at_xi_1_the_trajectory_is_gradient_descents(workers):
    shape = Shape(48, workers, 50, 1, 2, disjoint=False, sign_per_filter=False)
    found = compared(shape, xi=1.0)
    assert np.sqrt(found.distance.max()) < 1e-12
    assert np.sqrt(found.output_gap.max()) < 1e-12
    assert found.gd_loss[-1] < 0.1 * found.gd_loss[0]
    assert np.sqrt(compared(shape, xi=0.9).distance[:, -1].min()) > 1e-3


def test_at_xi_1_workers_take_the_local_steps_of_gradient_descent():
    found = compared(Shape(48, 2, 5, 3, 2, disjoint=False, sign_per_filter=True), xi=1.0)
    assert np.sqrt(found.distance.max()) < 1e-12
    once = compared(Shape(48, 2, 15, 1, 2, disjoint=False, sign_per_filter=True), xi=1.0)
    assert np.allclose(found.gd_loss, once.gd_loss[::3], rtol=1e-12)


def test_both_start_together_and_masks_differ_by_seed_and_draw():
    found, other = compared(), compared(seed=1)
    assert (found.distance[:, 0].max(), found.output_gap[:, 0].max(), found.changed[:, 0].max()) == (0, 0, 0)
    assert len(set(found.distance[:, 1]) | set(other.distance[:, 1])) == 8
    assert not np.array_equal(found.initial, other.initial)
    assert found.distance.dtype == np.float64


@pytest.mark.parametrize("xi", [0.2, 0.7])
def test_masks_keep_filters_with_probability_xi_independently(xi):
    masks = np.asarray(draw_masks(Shape(20_000, 3, 1, 1, 1, False, False), jax.random.key(0), xi))
    assert np.abs(masks.mean(axis=1) - xi).max() < 5 * np.sqrt(xi * (1 - xi) / 20_000)
    keepers = np.bincount(masks.sum(axis=0), minlength=4) / 20_000
    assert np.abs(keepers - binom.pmf(np.arange(4), 3, xi)).max() < 5 * 0.5 / np.sqrt(20_000)
    assert abs(keepers[0] - (1 - trained_probability(3, xi))) < 0.02


@pytest.mark.parametrize("filters", [48, 50])
def test_disjoint_groups_are_equal_and_random(filters):
    shape = Shape(filters, 3, 1, 1, 1, True, False)
    masks, others = (np.asarray(draw_masks(shape, jax.random.key(seed), 1 / 3)) for seed in (0, 1))
    assert np.all(masks.sum(axis=0) == 1)
    assert np.ptp(masks.sum(axis=1)) == (filters % 3 > 0)
    assert not np.array_equal(masks, others)


def test_one_compilation_serves_a_shape():
    compare.clear_cache()
    for eta, xi, seed in ((0.1, 0.5, 0), (0.2, 0.25, 1), (0.1, 1.0, 2)):
        compared(eta=eta, xi=xi, seed=seed)
    assert compare._cache_size() == 1
    compared(Shape(24, 3, 10, 1, 4, disjoint=False, sign_per_filter=False))
    assert compare._cache_size() == 2


@pytest.mark.parametrize("xi", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("workers", [1, 4, 64])
def test_the_moments_of_masks_are_sums_over_the_number_of_keepers(workers, xi):
    keepers = range(1, workers + 1)
    chances = [math.comb(workers, k) * xi**k * (1 - xi) ** (workers - k) for k in keepers]
    theta = math.fsum(chances)
    own = math.fsum(chance / k for k, chance in zip(keepers, chances, strict=True)) - theta**2 / workers
    found = MaskMoments.of(workers, xi, disjoint=False)
    assert found == pytest.approx((theta, theta**2 / workers, own), rel=1e-12, abs=1e-12)


@pytest.mark.full
@pytest.mark.parametrize(
    ("disjoint", "settings"),
    [(False, {}), (False, {"xi": 0.8, "output_scale": 1.0, "gd_step": 0.3}), (True, {"xi": 1 / 3, "gd_step": 0.2})],
)
def test_a_wide_network_is_at_the_limit(disjoint, settings):
    """The limit is an independent derivation: matrices of the closed-form kernels, no network and no masks."""
    kernels = infinite_kernels(INPUTS.patches, 0.3)
    ratios = []
    for seed in range(5):
        found = compared(Shape(2048, 3, 10, 1, 8, disjoint, False), seed, **settings)
        masks = MaskMoments.of(3, settings.get("xi", 0.5), disjoint=disjoint)
        limit = lazy_limit(kernels, INPUTS.labels, found.initial, rates(**settings), masks, 10)
        ratios.append([found.distance[:, -1].mean() / limit.distance[-1]])
        if not disjoint:
            ratios[-1].append(found.output_gap.mean(axis=0).sum() / limit.output_gap.sum())
    error = np.std(ratios, axis=0, ddof=1) / np.sqrt(len(ratios))
    assert error.max() < 0.1
    assert np.all(np.abs(np.mean(ratios, axis=0) - 1) < 4 * error + 0.04)
    assert disjoint == (limit.output_gap.max() < 1e-15)
