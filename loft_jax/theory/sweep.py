"""The experiment on Theorem 1: settings in a star round one point, each compared over draws of W_0."""

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
class Setting:
    """One point of the star: `masks` is "theorem" or "disjoint"; the rest in the theorem's letters m, S, xi, eta."""

    masks: str
    filters: int
    workers: int
    xi: float
    eta: float

    @property
    def theta(self) -> float:
        """The probability that a filter is trained."""
        return 1.0 if self.masks == "disjoint" else trained_probability(self.workers, self.xi)


def star(theory: Theory) -> dict[str, list[Setting]]:
    """Sweep -> its settings: one quantity moves, the others stay at the centre."""
    centre = Setting("theorem", theory.filters, theory.workers, theory.xi, theory.eta)
    dealt = replace(centre, masks="disjoint", xi=1 / theory.workers)
    return {
        "filters": [replace(centre, filters=filters) for filters in theory.swept("filters")],
        "disjoint": [replace(dealt, filters=filters) for filters in theory.swept("disjoint")],
        "workers": [replace(centre, workers=workers) for workers in theory.swept("workers")],
        "xi": [replace(centre, xi=xi) for xi in theory.swept("xi")],
        "eta": [replace(centre, eta=eta) for eta in theory.swept("eta")],
        "rounds": [centre],
    }


def rates_of(theory: Theory, setting: Setting) -> Rates:
    """The numbers that a setting is compared with, under the reading that the settings choose."""
    gd_step = setting.eta * (setting.theta if theory.gd_step == "theta_eta" else 1)
    output_scale = 1 if theory.scale == "literal" else 1 / setting.xi
    gradient_scale = 1 / setting.xi if theory.scale == "differentiated" else 1
    return Rates(theory.kappa, setting.xi, setting.eta, gd_step, output_scale, gradient_scale)


class Measured(NamedTuple):
    """A setting over draws of W_0, means over mask seeds: [draws, T + 1] each, `lambda_min` [draws].

    Attributes:
      distance: E ||W_t - W^_t||_F^2.
      outputs: eta * sum_{u<t} E ||f(X, W_u) - f(X, W^_u)||^2.
      limit: of the sum of both at infinite width, from the draw's f(X, W_0); NaN with several local steps.
      changed: share of activations that are not what they were at W_0.
      loss: gradient descent's, over its first.
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
        """The theorem's left side."""
        return self.distance + self.outputs


class TheoremSweep:
    """The comparisons of one config. Raises UserError if a step is so long that descent on these inputs diverges.

    Attributes:
      inputs, kernels: what the network is trained on, and its kernels of infinite width.
      sweeps: sweep -> its settings. "filters" and "disjoint" sweep m, for the two kinds of masks; "rounds" is one
        setting, to be looked at after each round.
      settings: all of them, once each.
      measured: setting -> what was found, after `run`.
    """

    def __init__(self, config: TheoryConfig):
        self.config, self.theory = config, config.theory
        self.inputs: Inputs = make_inputs(config)
        per_filter = self.theory.signs == "filter"
        self.kernels: Kernels = infinite_kernels(self.inputs.patches, self.theory.kappa, sign_per_filter=per_filter)
        self.sweeps = star(self.theory)
        unique = dict.fromkeys(setting for sweep in self.sweeps.values() for setting in sweep)
        # What takes longest first: the time left is then known early.
        self.settings = sorted(unique, key=self.work, reverse=True)
        self.measured: dict[Setting, Measured] = {}
        for setting in self.settings:
            check_step(self.theory, setting, float(self.kernels.eigenvalues[-1]))

    def run(self, report: Callable[[Setting, int], None] = lambda setting, draw: None) -> None:
        """Compare all settings, in float64; `report` is called after each draw of each.

        Raises RunStopped where weights grow without bound, as they can at small widths and long steps.
        """
        with jax.enable_x64(True):
            for setting in self.settings:
                draws = []
                for draw in range(self.theory.draws):
                    draws.append(self._draw(setting, draw))
                    report(setting, draw)
                self.measured[setting] = Measured(*map(np.stack, zip(*draws, strict=True)))

    def work(self, setting: Setting) -> int:
        """In proportion to the time of a draw."""
        return setting.filters * self.theory.seeds_for(setting.filters)

    def shape_of(self, setting: Setting) -> Shape:
        """What the setting's comparison is compiled for."""
        theory = self.theory
        return Shape(
            setting.filters,
            setting.workers,
            theory.rounds,
            theory.local_steps,
            theory.seeds_for(setting.filters),
            disjoint=setting.masks == "disjoint",
            sign_per_filter=theory.signs == "filter",
        )

    def _draw(self, setting: Setting, draw: int) -> Measured:
        rates = rates_of(self.theory, setting)
        key = key_for(self.config.seed, Purpose.THEOREM, draw)
        # Arrays, for numbers would be compiled for whether they are whole.
        traced = Rates(*map(np.float64, rates))
        found = jax.tree.map(np.asarray, compare(self.shape_of(setting), key, *self.inputs, traced))
        if not (np.isfinite(found.distance).all() and np.isfinite(found.output_gap).all()):
            raise RunStopped(
                f"theory.eta={setting.eta:g}: with {setting.filters} filters the weights grow without bound; use a "
                "shorter step, or more filters"
            )
        return Measured(
            found.distance.mean(axis=0),
            setting.eta * sums_before(found.output_gap.mean(axis=0)),
            self._limit(setting, rates, found.initial),
            found.changed.mean(axis=0),
            found.gd_loss / found.gd_loss[0],
            found.smallest,
        )

    def _limit(self, setting: Setting, rates: Rates, initial: np.ndarray) -> np.ndarray:
        rounds = self.theory.rounds
        if self.theory.local_steps > 1:
            return np.full(rounds + 1, np.nan)
        masks = MaskMoments.of(setting.workers, setting.xi, disjoint=setting.masks == "disjoint")
        limit = lazy_limit(self.kernels, self.inputs.labels, initial, rates, masks, rounds)
        return limit.distance + setting.eta * sums_before(limit.output_gap)


def check_step(theory: Theory, setting: Setting, largest: float) -> None:
    """Raise UserError where descent with a setting's steps diverges, for a largest eigenvalue of the kernel."""
    rates = rates_of(theory, setting)
    loft_step = rates.eta * rates.gradient_scale * rates.output_scale * setting.xi * setting.theta
    step = max(rates.gd_step, loft_step)
    if step * largest >= 2:
        key = "eta" if setting.eta == theory.eta else "sweep_eta"
        raise UserError(
            f"theory.{key}={setting.eta:g}: descent diverges, for its step of {step:.3g} times the kernel's largest "
            f"eigenvalue {largest:.3g} must be below 2; try at most {0.9 * 2 / largest * setting.eta / step:.2g}"
        )


def sums_before(values: np.ndarray) -> np.ndarray:
    """[T + 1] -> [T + 1], at t the sum of what is before t."""
    return np.concatenate([[0.0], np.cumsum(values[:-1])])
