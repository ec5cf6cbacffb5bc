"""What the experiment on Theorem 1 found: a row a point, the bound's terms, and slopes with their intervals."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from loft_jax.theory.config import Theory
from loft_jax.theory.sweep import Setting, TheoremSweep, rates_of

Row = dict[str, Any]
# Every one has its mean over draws of W_0 in a row, and the mean's standard error.
MEASURED = ("left", "distance", "outputs", "limit", "excess", "changed", "loss", "lambda_min")
COLUMNS = (
    *("sweep", "masks", "filters", "workers", "xi", "eta", "rounds", "theta", "gd_step", "draws", "mask_seeds"),
    *(name for column in MEASURED for name in (column, f"{column}_se")),
    *("lambda_0", "bound_width", "bound_masks"),
)
FLOOR_REACHED = 1.1  # of the limit


def result_rows(sweep: TheoremSweep) -> list[Row]:
    """A row for each setting of each sweep after the last round, and for each round of the sweep of rounds."""
    last = sweep.theory.rounds
    rows: list[Row] = []
    for name, settings in sweep.sweeps.items():
        for setting in settings:
            ends = range(1, last + 1) if name == "rounds" else [last]
            rows += [{"sweep": name, **_row(sweep, setting, rounds)} for rounds in ends]
    return rows


def per_draw(sweep: TheoremSweep, setting: Setting, rounds: int) -> dict[str, np.ndarray]:
    """Column of `MEASURED` -> its values [draws] after so many rounds; `excess` is `left` less `limit`."""
    measured = sweep.measured[setting]
    named = {**measured._asdict(), "left": measured.left, "excess": measured.left - measured.limit}
    return {name: named[name] if named[name].ndim == 1 else named[name][:, rounds] for name in MEASURED}


def _row(sweep: TheoremSweep, setting: Setting, rounds: int) -> Row:
    lambda_0 = float(sweep.kernels.eigenvalues[0])
    figures = {}
    for name, values in per_draw(sweep, setting, rounds).items():
        figures[name], figures[f"{name}_se"] = mean_and_error(values)
    return {
        **vars(setting),
        "rounds": rounds,
        "theta": setting.theta,
        "gd_step": rates_of(sweep.theory, setting).gd_step,
        "draws": sweep.theory.draws,
        "mask_seeds": sweep.theory.seeds_for(setting.filters),
        **figures,
        "lambda_0": lambda_0,
        **bound_terms(sweep.theory, setting, rounds, lambda_0),
    }


def result_summary(sweep: TheoremSweep) -> Row:
    """Slopes in log-log, each with a 95 % interval over draws of W_0; where the floor begins; eigenvalues."""
    last = sweep.theory.rounds
    along = {
        name: [(setting, per_draw(sweep, setting, last)) for setting in settings]
        for name, settings in sweep.sweeps.items()
    }

    def slope(name: str, column: str, quantity: Callable[[Setting], float]) -> Row | None:
        points = along[name]
        return fitted_slope([quantity(setting) for setting, _ in points], [values[column] for _, values in points])

    (centre,) = sweep.sweeps["rounds"]
    times = range(1, last + 1)
    return {
        "slopes": {
            "left against filters": slope("filters", "left", lambda setting: setting.filters),
            "excess against filters": slope("filters", "excess", lambda setting: setting.filters),
            "changed against filters": slope("filters", "changed", lambda setting: setting.filters),
            "left against filters, disjoint": slope("disjoint", "left", lambda setting: setting.filters),
            "excess against filters, disjoint": slope("disjoint", "excess", lambda setting: setting.filters),
            "left against workers": slope("workers", "left", lambda setting: setting.workers),
            "left against 1 - xi": slope("xi", "left", lambda setting: 1 - setting.xi),
            "left against eta": slope("eta", "left", lambda setting: setting.eta),
            "left against rounds": fitted_slope(times, [per_draw(sweep, centre, t)["left"] for t in times]),
        },
        "floor_from_filters": _floor_from(along["filters"]),
        "left_at_xi_1": max((float(values["left"].max()) for at, values in along["xi"] if at.xi == 1), default=None),
        "lambda_0": float(sweep.kernels.eigenvalues[0]),
        "lambda_max": float(sweep.kernels.eigenvalues[-1]),
    }


def _floor_from(points: Iterable[tuple[Setting, dict[str, np.ndarray]]]) -> int | None:
    """The least m from which on the mean left side is within 10 % of its limit."""
    reached = None
    for setting, values in points:
        if not values["left"].mean() <= FLOOR_REACHED * values["limit"].mean():
            reached = None
        elif reached is None:
            reached = setting.filters
    return reached


def bound_terms(theory: Theory, setting: Setting, rounds: int, lambda_0: float) -> Row:
    """The two terms of Theorem 1's bound, without its unknown constants."""
    n, d, m = theory.samples, theory.channels, setting.filters
    width = n**2 * d**0.5 / (lambda_0**2 * theory.kappa * m**0.25 * theory.delta**0.5)
    masks = 2 * setting.eta**2 * rounds * setting.theta**2 * (1 - setting.xi) * lambda_0 / setting.workers
    return {"bound_width": width, "bound_masks": masks}


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
