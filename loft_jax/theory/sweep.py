"""The experiment on Theorem 1: sweeps through one central point. Every point is compared over draws of W_0."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from loft_jax.errors import RunStopped, UserError
from loft_jax.randomness import Purpose, key_for
from loft_jax.theory.config import Theory, TheoryConfig
from loft_jax.theory.descent import Rates, Shape, compare
from loft_jax.theory.inputs import Inputs, make_inputs
from loft_jax.theory.limit import MaskMoments, lazy_limit, trained_probability
from loft_jax.theory.network import Kernels, infinite_kernels


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep: `masks` is "theorem" or "disjoint"; the others are m, S, xi and eta of the theorem."""

    masks: str
    filters: int
    workers: int
    xi: float
    eta: float

    @property
    def theta(self) -> float:
        """Probability that a filter is trained."""
        return 1.0 if self.masks == "disjoint" else trained_probability(self.workers, self.xi)


def make_sweeps(theory: Theory) -> dict[str, list[SweepPoint]]:
    """Return sweep -> its points: one quantity changes, the others have their values of the central point."""
    centre = SweepPoint("theorem", theory.filters, theory.workers, theory.xi, theory.eta)
    dealt = replace(centre, masks="disjoint", xi=1 / theory.workers)
    return {
        "filters": [replace(centre, filters=filters) for filters in theory.swept("filters")],
        "disjoint": [replace(dealt, filters=filters) for filters in theory.swept("disjoint")],
        "workers": [replace(centre, workers=workers) for workers in theory.swept("workers")],
        "xi": [replace(centre, xi=xi) for xi in theory.swept("xi")],
        "eta": [replace(centre, eta=eta) for eta in theory.swept("eta")],
        "rounds": [centre],
    }


def rates_of(theory: Theory, point: SweepPoint) -> Rates:
    """Return the numbers of a point's comparison, by the reading of the theorem that the settings choose."""
    gd_step = point.eta * (point.theta if theory.gd_step == "theta_eta" else 1)
    output_scale = 1 if theory.scale == "literal" else 1 / point.xi
    gradient_scale = 1 / point.xi if theory.scale == "differentiated" else 1
    return Rates(theory.kappa, point.xi, point.eta, gd_step, output_scale, gradient_scale)


class Measurements(NamedTuple):
    """Means over mask seeds at one point, for each draw of W_0: [draws, T + 1] each, `lambda_min` [draws].

    Attributes:
      distance: E ||W_t - W^_t||_F^2.
      outputs: eta * sum_{u<t} E ||f(X, W_u) - f(X, W^_u)||^2.
      limit: limit of the sum of both at infinite width, from the draw's f(X, W_0); NaN with several local steps.
      changed: share of activations that differ from those at W_0.
      loss: loss of gradient descent, divided by its first value.
      lambda_min: smallest eigenvalue of the empirical kernel at W_0.
    """

    distance: np.ndarray
    outputs: np.ndarray
    limit: np.ndarray
    changed: np.ndarray
    loss: np.ndarray
    lambda_min: np.ndarray

    @property
    def left(self) -> np.ndarray:
        """The left side of the theorem."""
        return self.distance + self.outputs


class TheoremSweep:
    """The comparisons of one config. Raises UserError if a step is so long that descent on these inputs diverges.

    Attributes:
      inputs: what the network is trained on.
      kernels: its kernels of infinite width.
      sweeps: sweep -> its points. "filters" and "disjoint" sweep m, for the two kinds of masks; "rounds" has one point,
        with results after each round.
      points: all points, once each.
      measurements: point -> its results, after `run`.
    """

    def __init__(self, config: TheoryConfig):
        self.config, self.theory = config, config.theory
        self.inputs: Inputs = make_inputs(config)
        per_filter = self.theory.signs == "filter"
        self.kernels: Kernels = infinite_kernels(self.inputs.patches, self.theory.kappa, sign_per_filter=per_filter)
        self.sweeps = make_sweeps(self.theory)
        unique = dict.fromkeys(point for sweep in self.sweeps.values() for point in sweep)
        # The longest comparisons come first, so that the time left is known early.
        self.points = sorted(unique, key=self.work, reverse=True)
        self.measurements: dict[SweepPoint, Measurements] = {}
        for point in self.points:
            check_step(self.theory, point, float(self.kernels.eigenvalues[-1]))

    def run(self, report: Callable[[SweepPoint, int], None] = lambda point, draw: None) -> None:
        """Compare at all points, in float64; `report` is called after each draw of each point.

        Raises RunStopped if weights grow without bound, as they can with few filters and long steps.
        """
        with jax.enable_x64(True):
            for point in self.points:
                draws = []
                for draw in range(self.theory.draws):
                    draws.append(self._compare_draw(point, draw))
                    report(point, draw)
                self.measurements[point] = Measurements(*map(np.stack, zip(*draws, strict=True)))

    def work(self, point: SweepPoint) -> int:
        """Return a number that is proportional to the time of a draw."""
        return point.filters * self.theory.seeds_for(point.filters)

    def shape_of(self, point: SweepPoint) -> Shape:
        """Return the static part of a point's comparison."""
        theory = self.theory
        return Shape(
            point.filters,
            point.workers,
            theory.rounds,
            theory.local_steps,
            theory.seeds_for(point.filters),
            disjoint=point.masks == "disjoint",
            sign_per_filter=theory.signs == "filter",
        )

    def _compare_draw(self, point: SweepPoint, draw: int) -> Measurements:
        rates = rates_of(self.theory, point)
        key = key_for(self.config.seed, Purpose.THEOREM, draw)
        # Arrays, because an int and a float would each be compiled.
        traced = Rates(*map(np.float64, rates))
        found = jax.tree.map(np.asarray, compare(self.shape_of(point), key, *self.inputs, traced))
        if not (np.isfinite(found.distance).all() and np.isfinite(found.output_gap).all()):
            raise RunStopped(
                f"theory.eta={point.eta:g}: with {point.filters} filters the weights grow without bound; use a "
                "shorter step, or more filters"
            )
        return Measurements(
            found.distance.mean(axis=0),
            point.eta * sums_before(found.output_gap.mean(axis=0)),
            self._compute_limit(point, rates, found.initial),
            found.changed.mean(axis=0),
            found.gd_loss / found.gd_loss[0],
            found.smallest,
        )

    def _compute_limit(self, point: SweepPoint, rates: Rates, initial: np.ndarray) -> np.ndarray:
        rounds = self.theory.rounds
        if self.theory.local_steps > 1:
            return np.full(rounds + 1, np.nan)
        masks = MaskMoments.of(point.workers, point.xi, disjoint=point.masks == "disjoint")
        limit = lazy_limit(self.kernels, self.inputs.labels, initial, rates, masks, rounds)
        return limit.distance + point.eta * sums_before(limit.output_gap)


def check_step(theory: Theory, point: SweepPoint, largest: float) -> None:
    """Raise UserError if descent with a point's steps diverges, given the largest eigenvalue of the kernel."""
    rates = rates_of(theory, point)
    loft_step = rates.eta * rates.gradient_scale * rates.output_scale * point.xi * point.theta
    step = max(rates.gd_step, loft_step)
    if step * largest >= 2:
        key = "eta" if point.eta == theory.eta else "sweep_eta"
        raise UserError(
            f"theory.{key}={point.eta:g}: descent diverges unless its step ({step:.3g}) times the kernel's largest "
            f"eigenvalue ({largest:.3g}) is below 2; try at most {0.9 * 2 / largest * point.eta / step:.2g}"
        )


def sums_before(values: np.ndarray) -> np.ndarray:
    """Return the sums [T + 1] of the values [T + 1] before each index."""
    return np.concatenate([[0.0], np.cumsum(values[:-1])])
