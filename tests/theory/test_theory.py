"""The experiment at a small size: what Theorem 1 says, by margins of several standard errors, and the command."""

import csv
import json
import sys
from itertools import pairwise

import jax
import numpy as np
import pytest
import yaml

from loft_jax.errors import RunStopped
from loft_jax.theory import __main__ as theory
from loft_jax.theory.config import TheoryConfig
from loft_jax.theory.descent import Rates, compare
from loft_jax.theory.figures import width_figure
from loft_jax.theory.rows import COLUMNS, bound_terms, fit_slope, result_rows, values_per_draw
from loft_jax.theory.sweep import SweepPoint, TheoremSweep, rates_of

SMALL = {
    "draws": 8,
    "mask_seeds": 8,
    "rounds": 10,
    "filters": 256,
    "sweep_filters": "32,256,1024",
    "sweep_disjoint": "64,1024",
    "sweep_workers": "1,4",
    "sweep_xi": "0.25,0.5,0.9,1",
    "sweep_eta": "0.1,0.4",
}


def experiment(**settings):
    return TheoremSweep(TheoryConfig(theory={**SMALL, **settings}))


@pytest.fixture(scope="module")
def small():
    """The experiment, run, and how often it was compiled."""
    compare.clear_cache()
    made = experiment()
    made.run()
    return made, compare._cache_size()


def column(made, sweep, name):
    """[points, draws], after the last round."""
    return np.array([values_per_draw(made, point, made.theory.rounds)[name] for point in made.sweeps[sweep]])


def margin(values):
    """The mean over draws in standard errors: a difference of two points is judged draw by draw."""
    return values.mean() / (values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize(("sweep", "sign"), [("filters", -1), ("disjoint", -1), ("workers", -1), ("eta", 1)])
def test_the_left_side_falls_with_filters_and_workers_and_grows_with_the_step(small, sweep, sign):
    left = np.log(column(small[0], sweep, "left"))
    assert margin(sign * (left[-1] - left[0])) > 5


def test_the_left_side_grows_with_the_rounds(small):
    made = small[0]
    left = [values_per_draw(made, made.sweeps["rounds"][0], t)["left"] for t in range(made.theory.rounds + 1)]
    assert all(margin(later - earlier) > 4 for earlier, later in pairwise(left))


def test_the_left_side_falls_with_xi_and_is_nothing_at_1(small):
    left = column(small[0], "xi", "left")
    assert all(margin(before - after) > 4 for before, after in pairwise(left))
    assert left[-1].max() < 1e-24 < 1e-3 < left[-2].min()


@pytest.mark.parametrize("sweep", ["filters", "disjoint"])
def test_what_is_above_the_limit_falls_faster_than_the_bound_allows(small, sweep):
    above = column(small[0], sweep, "excess")
    assert margin(above[0]) > 4
    # At m^-1/4 sixteen times m would leave half, or more than half; and 32 times m less, but not less than 0.42.
    assert margin(0.42 * above[0] - above[-1]) > 4


def test_at_1024_filters_the_floor_is_the_limit_of_infinite_width(small):
    for sweep in ("filters", "disjoint"):
        left, limit = (column(small[0], sweep, name)[-1] for name in ("left", "limit"))
        assert abs(left.mean() / limit.mean() - 1) < 0.2
        assert limit.mean() > 0.05


def test_few_activations_change_and_the_fewer_the_wider(small):
    changed = column(small[0], "filters", "changed")
    slope = fit_slope([32, 256, 1024], changed)
    assert slope["high"] < -0.35
    assert slope["low"] > -0.65
    assert changed[-1].max() < 0.06


def test_one_compilation_serves_all_densities_steps_and_draws(small):
    made, compiled = small
    shapes = {made.shape_of(point) for point in made.points}
    assert compiled == len(shapes) == 6


def test_float64_is_left_outside(small):
    assert column(small[0], "filters", "left").dtype == np.float64
    assert jax.numpy.ones(1).dtype == np.float32


def left_at_two_steps(**readings):
    """The left side at 256 filters, with a step, and with a quarter of it and four times the rounds."""
    one_point = {"sweep_filters": "256", "sweep_disjoint": "256", "sweep_workers": "4", "sweep_xi": "0.5"}
    found = []
    for eta, rounds in ((0.2, 10), (0.05, 40)):
        made = experiment(**one_point, draws=3, eta=eta, sweep_eta=str(eta), rounds=rounds, **readings)
        made.run()
        found.append(column(made, "filters", "left").mean())
    return found


@pytest.fixture(scope="module")
def unbiased():
    return left_at_two_steps()


@pytest.mark.full
@pytest.mark.parametrize(
    ("scale", "gd_step"), [("literal", "theta_eta"), ("literal", "eta"), ("differentiated", "theta_eta")]
)
def test_other_readings_lead_elsewhere_at_any_step(unbiased, scale, gd_step):
    """At a quarter of the step and four times the rounds, noise falls to a quarter; another way stays another way."""
    other = left_at_two_steps(scale=scale, gd_step=gd_step)
    assert unbiased[1] < 0.5 * unbiased[0]
    assert other[1] > 0.6 * other[0]
    assert other[1] > 3 * unbiased[1]


def test_the_star_moves_one_quantity_at_a_time_and_computes_each_point_once():
    made = experiment(sweep_filters="64,256", sweep_eta="0.1,0.2,0.4")
    centre = SweepPoint("theorem", 256, 4, 0.5, 0.2)
    for sweep in ("filters", "workers", "xi", "eta", "rounds"):
        assert centre in made.sweeps[sweep]
        for point in made.sweeps[sweep]:
            differing = [key for key, value in vars(point).items() if value != vars(centre)[key]]
            assert differing in ([], [sweep])
    assert len(made.points) == 1 + 1 + 2 + 1 + 3 + 2


def test_the_bound_without_its_constants():
    settings = TheoryConfig(theory={"kappa": 0.5, "delta": 0.25}).theory
    found = bound_terms(settings, SweepPoint("theorem", 16, 2, 0.25, 0.1), 10, 0.2)
    # n = 16, d = 8; theta = 7/16.
    assert found["bound_width"] == pytest.approx(256 * 8**0.5 / (0.04 * 0.5 * 2 * 0.5))
    assert found["bound_masks"] == pytest.approx(2 * 0.01 * 10 * 0.4375**2 * 0.75 * 0.2 / 2)


@pytest.mark.parametrize(
    ("scale", "gd_step", "scales", "step"),
    [
        ("unbiased", "theta_eta", (4, 1), 0.4375 * 0.1),
        ("differentiated", "eta", (4, 4), 0.1),
        ("literal", "theta_eta", (1, 1), 0.4375 * 0.1),
    ],
)
def test_the_readings_are_scales_and_steps(scale, gd_step, scales, step):
    settings = TheoryConfig(theory={"scale": scale, "gd_step": gd_step}).theory
    found = rates_of(settings, SweepPoint("theorem", 16, 2, 0.25, 0.1))
    assert (found.output_scale, found.gradient_scale) == scales
    assert found.gd_step == pytest.approx(step)
    assert found.eta == 0.1


def test_slopes_are_of_powers_and_use_what_is_positive():
    at, noise = np.array([1.0, 2, 4, 8]), np.array([0.9, 1.0, 1.1])
    found = fit_slope(at, at[:, None] ** -0.5 * noise)
    assert (found["slope"], found["first"], found["last"]) == (pytest.approx(-0.5), 1, 8)
    assert found["high"] - found["low"] < 1e-12
    values = at[:, None] ** np.array([-0.4, -0.5, -0.6])
    values[3, 1] = -1
    assert fit_slope(at, values)["last"] == 4
    # The t-interval of three slopes that lie 0.1 apart: 4.303 * 0.1 / sqrt(3).
    assert fit_slope(at[:3], values[:3])["high"] == pytest.approx(-0.5 + 0.24841, abs=1e-5)
    assert fit_slope(at[:2], values[:2]) is None


def test_weights_that_grow_without_bound_stop_the_run(monkeypatch):
    monkeypatch.setattr("loft_jax.theory.sweep.check_step", lambda *_: None)
    one_point = {"filters": 8, "sweep_filters": "8", "sweep_disjoint": "8", "sweep_workers": "4", "sweep_xi": "0.5"}
    made = experiment(**one_point, draws=2, eta=1e9, rounds=60)
    with pytest.raises(RunStopped, match=r"theory.eta=1e\+09: with 8 filters the weights grow without bound"):
        made.run()


@pytest.mark.parametrize("signs", ["pixel", "filter"])
def test_memory_is_foreseen(signs):
    made = experiment(signs=signs, rounds=30)
    point = made.sweeps["filters"][-1]
    with jax.enable_x64(True):
        rates = Rates(*map(np.float64, rates_of(made.theory, point)))
        lowered = compare.lower(made.shape_of(point), jax.random.key(0), *made.inputs, rates)
        needed = lowered.compile().memory_analysis().temp_size_in_bytes
    fixed, per_filter = made.theory.bytes_needed
    assert 0.5 < (fixed + per_filter * point.filters) / needed < 2


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["theory", *map(str, arguments)])
    theory.main()


def results(path):
    with open(path / "out/results.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
def test_the_command_writes_rows_slopes_figures_and_its_config(monkeypatch, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("theory: {draws: 2, mask_seeds: 2, rounds: 3, filters: 8, workers: 2}\n")
    options = ("--config", tmp_path / "c.yaml", "--out", tmp_path / "out", "--theory.sweep_eta", "0.1")
    few = ("--theory.sweep_disjoint", "8", "--theory.sweep_workers", "2", "--theory.sweep_xi", "0.5,1")
    # Into a directory that holds results.
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.csv").touch()
    call(monkeypatch, *options, *few, "--theory.sweep_filters", "8,16,32")
    rows = results(tmp_path)
    assert tuple(rows[0]) == COLUMNS
    assert [row["sweep"] for row in rows] == [
        *["filters"] * 3,
        "disjoint",
        "workers",
        *["xi"] * 2,
        "eta",
        *["rounds"] * 3,
    ]
    for row in rows:
        assert float(row["left"]) == pytest.approx(float(row["distance"]) + float(row["outputs"]))
        assert float(row["excess"]) == pytest.approx(float(row["left"]) - float(row["limit"]))
    assert "slope     left against filters: " in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["left_at_xi_1"] < 1e-24
    assert summary["slopes"]["left against filters"]["last"] == 32
    written = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert TheoryConfig.model_validate(written).theory.sweep_filters == "8,16,32"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{name}.{kind}" for name in ("width", "masks", "steps", "lazy") for kind in ("png", "svg")}
    assert names == {"results.csv", "summary.json", "config.yaml"} | figures
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in figures if "png" in name)


def test_with_several_local_steps_there_is_no_limit_and_the_figure_says_so():
    one_point = {"filters": 8, "sweep_filters": "8", "sweep_disjoint": "8", "sweep_workers": "4", "sweep_xi": "0.5"}
    made = experiment(**one_point, draws=2, mask_seeds=2, rounds=3, local_steps=2, sweep_eta="0.2")
    made.run()
    rows = result_rows(made)
    assert {(row["limit"], row["limit_se"], row["excess"]) for row in rows} == {(None, None, None)}
    assert all(row["left"] > 0 for row in rows)
    whole, above = width_figure(rows).axes
    assert whole.has_data()
    assert above.texts[0].get_text() == "no value above zero"


def test_help_shows_every_setting(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "--help", "all")
    shown = capsys.readouterr().out
    assert "--theory.scale unbiased|differentiated|literal" in shown
    assert "--theory.sweep_filters str" in shown
    assert "--loft.workers" not in shown
