"""Whatever JAX's environment says, a run has the same numbers, and a user's program keeps its own options."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml
from helpers import ROOT, TESTS
from helpers.runs import SETTINGS, settings_with

from loft_jax import create_model, filter_scores, footrule_matrix
from loft_jax.arithmetic import fix_arithmetic, keep_jax_options
from loft_jax.config.config import Config
from loft_jax.randomness import Purpose, key_for

ENVIRONMENT = {
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "5",
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_TRANSFER_GUARD": "disallow",
}
OPTIONS = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "highest",
    "jax_transfer_guard": "disallow",
}


@pytest.fixture
def a_users_options():
    with keep_jax_options():
        for name, value in OPTIONS.items():
            jax.config.update(name, value)
        yield


def options():
    return {name: getattr(jax.config.values[name], "value", jax.config.values[name]) for name in OPTIONS}


def test_options_that_change_numbers_are_the_same_for_every_user(a_users_options):
    with keep_jax_options():
        fix_arithmetic()
        fixed = options()
        assert fixed["jax_default_prng_impl"] == "threefry2x32"
        assert fixed["jax_enable_x64"] is False
        assert fixed["jax_default_matmul_precision"] is None
        assert fixed["jax_numpy_rank_promotion"] == "allow"
        fix_arithmetic("highest")
        assert options()["jax_default_matmul_precision"] == "highest"
        assert float(jax.device_put(np.float32(1)) + np.arange(2)[0]) == 1, "the guard of transfers is open"
    assert options() == OPTIONS, "a notebook gets its own back"


def test_an_option_of_the_environment_that_has_no_effect_is_named_once(a_users_options, monkeypatch, capsys):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    fix_arithmetic()
    fix_arithmetic()
    assert capsys.readouterr().err == (
        "note      JAX_ENABLE_X64=True has no effect here\n"
        "note      JAX_DEFAULT_MATMUL_PRECISION=highest has no effect here; matmul_precision is a setting of the run\n"
    )


def test_keys_do_not_depend_on_the_implementation_that_the_environment_names():
    expected = jax.random.key_data(key_for(3, Purpose.ORDER, 2))
    with jax.default_prng_impl("rbg"):
        assert jax.random.key_data(key_for(3, Purpose.ORDER, 2)).tolist() == expected.tolist()


def test_functions_on_arrays_work_under_a_users_options(a_users_options):
    jax.config.update("jax_transfer_guard", "allow")
    network = create_model("preresnet20", 10, width=4)
    images = np.zeros((2, 32, 32, 3), np.float32)
    variables = network.init(jax.random.key(0), images)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert network.apply(variables, images).dtype == "float32"
    network.apply(variables, images, train=True, mutable=["batch_stats"])
    assert all(len(found) for found in filter_scores(variables, network.filter_groups()).values())
    assert footrule_matrix(np.array([[1, 2, 3], [3, 2, 1]])).shape == (2, 2)


def test_how_exactly_products_are_made_belongs_to_the_run():
    highest = Config(matmul_precision="highest")
    assert highest.hash() != Config().hash()
    assert "matmul_precision" not in highest.resumable_keys()


@pytest.mark.full
def test_a_run_under_any_environment_is_equal_to_the_bit(tmp_path):
    settings = settings_with(
        model={"name": f"{TESTS}/helpers/own_networks.py:Small", "width": None},
        train=SETTINGS["train"] | {"rounds": 2, "eval_every": 2, "trackers": "none"},
        mesh={"cpu_devices": 2},
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    rows, said = [], []
    for name, environment in (("plain", {}), ("set", ENVIRONMENT)):
        command = f"-m loft_jax.train --config {tmp_path}/c.yaml --workdir {tmp_path / name}".split()
        ended = subprocess.run(
            [sys.executable, *command], env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stderr)
        metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        rows.append([{key: row[key] for key in row if "loss" in key or "accuracy" in key} for row in metrics])
    assert rows[0] == rows[1]
    assert said[0] == ""
    assert said[1].count("has no effect here") == len(said[1].splitlines()) == len(ENVIRONMENT)
