"""The experiment: settings in a star round one point, each compared over draws of W_0; its rows and slopes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from loft_jax.errors import UserError
from loft_jax.lazy_limit import MaskMoments, lazy_limit, trained_probability
from loft_jax.masked_descent import Rates, Shape, compare
from loft_jax.randomness import Purpose, key_for
from loft_jax.theory_config import Theory, TheoryConfig
from loft_jax.theory_inputs import Inputs, make_inputs
from loft_jax.theory_network import Kernels, infinite_kernels

Row = dict[str, Any]
# "filters" and "disjoint" sweep m, for the two kinds of masks; "rounds" is one comparison, looked at after each round.
SWEEPS = ("filters", "disjoint", "workers", "xi", "eta", "rounds")
# Column -> what is left of it and its standard error over draws of W_0 in a row.
MEASURED = ("left", "distance", "outputs", "limit", "excess", "changed", "loss", "lambda_min")
COLUMNS = (
    *("sweep", "masks", "filters", "workers", "xi", "eta", "rounds", "theta", "gd_step", "draws", "mask_seeds"),
    *(name for column in MEASURED for name in (column, f"{column}_se")),
    *("lambda_0", "bound_width", "bound_masks"),
)
FLOOR_REACHED = 1.1  # of the limit


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
    S, xi, eta, m = theory.workers, theory.xi, theory.eta, theory.filters  # noqa: N806
    return {
        "filters": [Setting("theorem", filters, S, xi, eta) for filters in theory.swept("filters")],
        "disjoint": [Setting("disjoint", filters, S, 1 / S, eta) for filters in theory.swept("disjoint")],
        "workers": [Setting("theorem", m, workers, xi, eta) for workers in theory.swept("workers")],
        "xi": [Setting("theorem", m, S, density, eta) for density in theory.swept("xi")],
        "eta": [Setting("theorem", m, S, xi, step) for step in theory.swept("eta")],
        "rounds": [Setting("theorem", m, S, xi, eta)],
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


class Experiment:
    """Inputs, kernels, and the comparisons made so far.

    Raises UserError if a step is so long that descent on these inputs diverges.
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
        """Compare all settings, in float64; `report` is called after each draw of each."""
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
        gaps = found.output_gap.mean(axis=0)
        return Measured(
            found.distance.mean(axis=0),
            setting.eta * sums_before(gaps),
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

    def rows(self) -> list[Row]:
        """A row for each setting of each sweep after the last round, and for each round of the sweep of rounds."""
        last = self.theory.rounds
        rows = []
        for sweep, settings in self.sweeps.items():
            for setting in settings:
                ends = range(1, last + 1) if sweep == "rounds" else [last]
                rows += [self._row(sweep, setting, rounds) for rounds in ends]
        return rows

    def _row(self, sweep: str, setting: Setting, rounds: int) -> Row:
        theory, shape = self.theory, self.shape_of(setting)
        figures = {
            name: mean_and_error(values[:, rounds] if values.ndim > 1 else values)
            for name, values in self.per_draw(setting).items()
        }
        lambda_0 = float(self.kernels.eigenvalues[0])
        return {
            "sweep": sweep,
            **vars(setting),
            "rounds": rounds,
            "theta": setting.theta,
            "gd_step": rates_of(theory, setting).gd_step,
            "draws": theory.draws,
            "mask_seeds": shape.mask_seeds,
            **{f"{name}{end}": x for name, pair in figures.items() for end, x in zip(("", "_se"), pair, strict=True)},
            "lambda_0": lambda_0,
            **bound_terms(theory, setting, rounds, lambda_0),
        }

    def per_draw(self, setting: Setting) -> dict[str, np.ndarray]:
        """Column of `MEASURED` -> its values, [draws, T + 1] or [draws]."""
        measured = self.measured[setting]
        named = {**measured._asdict(), "left": measured.left, "excess": measured.left - measured.limit}
        return {name: named[name] for name in MEASURED}

    def summary(self) -> Row:
        """The slopes in log-log, each with a 95 % interval over draws of W_0, and where the floor is reached."""
        along = {sweep: [self._last(setting) for setting in settings] for sweep, settings in self.sweeps.items()}
        centre = self.per_draw(self.sweeps["rounds"][0])["left"]
        times = np.arange(1, self.theory.rounds + 1)
        slopes = {
            "left against filters": self._slope("filters", "left", along),
            "excess against filters": self._slope("filters", "excess", along),
            "changed against filters": self._slope("filters", "changed", along),
            "left against filters, disjoint": self._slope("disjoint", "left", along),
            "excess against filters, disjoint": self._slope("disjoint", "excess", along),
            "left against workers": self._slope("workers", "left", along),
            "left against 1 - xi": self._slope("xi", "left", along, lambda setting: 1 - setting.xi),
            "left against eta": self._slope("eta", "left", along),
            "left against rounds": fitted_slope(times, centre[:, 1:].T),
        }
        return {
            "slopes": slopes,
            "floor_from_filters": self._floor_from(along["filters"]),
            "left_at_xi_1": max((row["left"].max() for row in along["xi"] if row["setting"].xi == 1), default=None),
            "lambda_0": float(self.kernels.eigenvalues[0]),
            "lambda_max": float(self.kernels.eigenvalues[-1]),
        }

    def _last(self, setting: Setting) -> Row:
        final = {name: values[:, -1] if values.ndim > 1 else values for name, values in self.per_draw(setting).items()}
        return {"setting": setting, **final}

    def _slope(
        self,
        sweep: str,
        column: str,
        along: Mapping[str, Sequence[Row]],
        quantity: Callable[[Setting], float] | None = None,
    ) -> Row | None:
        name = "filters" if sweep == "disjoint" else sweep
        quantity = quantity or (lambda setting: getattr(setting, name))
        points = [(quantity(row["setting"]), row[column]) for row in along[sweep]]
        return fitted_slope([x for x, _ in points], [values for _, values in points])

    def _floor_from(self, rows: Iterable[Row]) -> int | None:
        """The least m from which on the mean left side is within 10 % of its limit."""
        reached = None
        for row in rows:
            if not row["left"].mean() <= FLOOR_REACHED * row["limit"].mean():
                reached = None
            elif reached is None:
                reached = row["setting"].filters
        return reached


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


def bound_terms(theory: Theory, setting: Setting, rounds: int, lambda_0: float) -> Row:
    """The two terms of Theorem 1's bound, without its unknown constants."""
    n, d, m = theory.samples, theory.channels, setting.filters
    width = n**2 * d**0.5 / (lambda_0**2 * theory.kappa * m**0.25 * theory.delta**0.5)
    masks = 2 * setting.eta**2 * rounds * setting.theta**2 * (1 - setting.xi) * lambda_0 / setting.workers
    return {"bound_width": width, "bound_masks": masks}


def sums_before(values: np.ndarray) -> np.ndarray:
    """[T + 1] -> [T + 1], at t the sum of what is before t."""
    return np.concatenate([[0.0], np.cumsum(values[:-1])])


def mean_and_error(values: np.ndarray) -> tuple[float | None, float | None]:
    """The mean over draws, and its standard error; None where there is no value."""
    if np.isnan(values).any():
        return None, None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def fitted_slope(at: Sequence[float] | np.ndarray, values: Sequence[np.ndarray] | np.ndarray) -> Row | None:
    """The slope of log values against log `at`, fitted for every draw, and a 95 % t-interval of its mean over draws.

    Only the leading points at which every draw is positive, and `at` too, are used.

    Args:
      at: [points], ascending or descending.
      values: [points, draws].

    Returns:
      `slope`, `low`, `high`, and the `first` and `last` point used; None where fewer than three are.
    """
    from scipy.stats import t

    at, values = np.asarray(at, float), np.asarray(values)
    used = int(np.cumprod((at > 0) & np.all(values > 0, axis=1)).sum())
    if used < 3:
        return None
    slopes = np.polyfit(np.log(at[:used]), np.log(values[:used]), 1)[0]
    half = t.ppf(0.975, len(slopes) - 1) * slopes.std(ddof=1) / np.sqrt(len(slopes))
    mean = slopes.mean()
    ends = {"first": float(at[0]), "last": float(at[used - 1])}
    return {"slope": float(mean), "low": float(mean - half), "high": float(mean + half), **ends}
