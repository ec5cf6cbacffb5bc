"""Results of the experiment on Theorem 1: a row for each point, the bound's terms, and slopes with their intervals."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from loft_jax.theory.config import Theory
from loft_jax.theory.sweep import SweepPoint, TheoremSweep, rates_of

Row = dict[str, Any]
# A row has the mean of each over draws of W_0, and the standard error of this mean.
MEASURED = ("left", "distance", "outputs", "limit", "excess", "changed", "loss", "lambda_min")
COLUMNS = (
    *("sweep", "masks", "filters", "workers", "xi", "eta", "rounds", "theta", "gd_step", "draws", "mask_seeds"),
    *(name for column in MEASURED for name in (column, f"{column}_se")),
    *("lambda_0", "bound_width", "bound_masks"),
)
FLOOR_REACHED = 1.1  # times the limit


def result_rows(sweep: TheoremSweep) -> list[Row]:
    """Return a row for each point of each sweep after the last round, and for each round in the sweep of rounds."""
    last = sweep.theory.rounds
    rows: list[Row] = []
    for name, points in sweep.sweeps.items():
        for point in points:
            ends = range(1, last + 1) if name == "rounds" else [last]
            rows += [{"sweep": name, **_row(sweep, point, rounds)} for rounds in ends]
    return rows


def values_per_draw(sweep: TheoremSweep, point: SweepPoint, rounds: int) -> dict[str, np.ndarray]:
    """Column of `MEASURED` -> its values [draws] after this many rounds; `excess` is `left` minus `limit`."""
    found = sweep.measurements[point]
    columns = {**found._asdict(), "left": found.left, "excess": found.left - found.limit}
    return {name: columns[name] if columns[name].ndim == 1 else columns[name][:, rounds] for name in MEASURED}


def _row(sweep: TheoremSweep, point: SweepPoint, rounds: int) -> Row:
    lambda_0 = float(sweep.kernels.eigenvalues[0])
    figures = {}
    for name, values in values_per_draw(sweep, point, rounds).items():
        figures[name], figures[f"{name}_se"] = mean_and_error(values)
    return {
        **vars(point),
        "rounds": rounds,
        "theta": point.theta,
        "gd_step": rates_of(sweep.theory, point).gd_step,
        "draws": sweep.theory.draws,
        "mask_seeds": sweep.theory.seeds_for(point.filters),
        **figures,
        "lambda_0": lambda_0,
        **bound_terms(sweep.theory, point, rounds, lambda_0),
    }


def result_summary(sweep: TheoremSweep) -> Row:
    """Return log-log slopes, each with a 95 % interval over draws of W_0, where the floor begins, and eigenvalues."""
    last = sweep.theory.rounds
    along = {
        name: [(point, values_per_draw(sweep, point, last)) for point in points]
        for name, points in sweep.sweeps.items()
    }

    def slope(name: str, column: str, quantity: Callable[[SweepPoint], float]) -> Row | None:
        points = along[name]
        return fit_slope([quantity(point) for point, _ in points], [values[column] for _, values in points])

    (centre,) = sweep.sweeps["rounds"]
    times = range(1, last + 1)
    return {
        "slopes": {
            "left against filters": slope("filters", "left", lambda point: point.filters),
            "excess against filters": slope("filters", "excess", lambda point: point.filters),
            "changed against filters": slope("filters", "changed", lambda point: point.filters),
            "left against filters, disjoint": slope("disjoint", "left", lambda point: point.filters),
            "excess against filters, disjoint": slope("disjoint", "excess", lambda point: point.filters),
            "left against workers": slope("workers", "left", lambda point: point.workers),
            "left against 1 - xi": slope("xi", "left", lambda point: 1 - point.xi),
            "left against eta": slope("eta", "left", lambda point: point.eta),
            "left against rounds": fit_slope(times, [values_per_draw(sweep, centre, t)["left"] for t in times]),
        },
        "floor_from_filters": _find_floor(along["filters"]),
        "left_at_xi_1": max((float(values["left"].max()) for at, values in along["xi"] if at.xi == 1), default=None),
        "lambda_0": float(sweep.kernels.eigenvalues[0]),
        "lambda_max": float(sweep.kernels.eigenvalues[-1]),
    }


def _find_floor(points: Iterable[tuple[SweepPoint, dict[str, np.ndarray]]]) -> int | None:
    """Return the least m from which on the mean left side is within 10 % of its limit; None if there is none."""
    reached = None
    for point, values in points:
        if not values["left"].mean() <= FLOOR_REACHED * values["limit"].mean():
            reached = None
        elif reached is None:
            reached = point.filters
    return reached


def bound_terms(theory: Theory, point: SweepPoint, rounds: int, lambda_0: float) -> Row:
    """Return the two terms of Theorem 1's bound, without its unknown constants."""
    n, d, m = theory.samples, theory.channels, point.filters
    width = n**2 * d**0.5 / (lambda_0**2 * theory.kappa * m**0.25 * theory.delta**0.5)
    masks = 2 * point.eta**2 * rounds * point.theta**2 * (1 - point.xi) * lambda_0 / point.workers
    return {"bound_width": width, "bound_masks": masks}


def mean_and_error(values: np.ndarray) -> tuple[float | None, float | None]:
    """Return the mean over draws and its standard error; None for both if a draw has no value."""
    if np.isnan(values).any():
        return None, None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def fit_slope(at: Sequence[float] | np.ndarray, values: Sequence[np.ndarray] | np.ndarray) -> Row | None:
    """Fit the slope of log values against log `at` for every draw; its mean over draws has a 95 % t-interval.

    Points from the first one at which `at` or a draw is not positive are left out.

    Args:
      at: [points], ascending or descending.
      values: [points, draws].

    Returns:
      `slope`, `low`, `high`, and the `first` and `last` point used; None if fewer than three are used.
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
