"""The commands as functions: the same runs as from the command line, from wherever they are called."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest
from helpers import TESTS
from helpers.own_networks import Listed, Small
from helpers.runs import SETTINGS, assert_same_state, config_of, opened, settings_with

from loft_jax import (
    Config,
    UserError,
    image_data,
    load_checkpoint,
    load_dataset,
    pretrain,
    retrain_tickets,
    search_tickets,
    write_report,
)
from loft_jax.train.__main__ import run

# Dense layers compile in a moment.
WHOLE = settings_with(model={"name": f"{TESTS}/helpers/own_networks.py:Plain", "width": None})
TRAINED = WHOLE | {"train": SETTINGS["train"] | {"rounds": 2, "snapshot_every": 1, "eval_every": 2}}


def data(seed=0):
    """Half of the digits, drawn by a seed."""
    digits, chosen = load_dataset(config_of()), np.random.default_rng(seed).permutation(1437)[:700]
    return image_data(
        digits.train_images[chosen], digits.train_labels[chosen], digits.test_images, digits.test_labels, name="mine"
    )


def test_a_call_trains_as_the_command_does(tmp_path):
    config = Config.model_validate(WHOLE)
    summary = pretrain(WHOLE, tmp_path / "called")
    run(config, opened(tmp_path / "command", config))
    one, other = (load_checkpoint(tmp_path / name)["variables"] for name in ("called", "command"))
    assert_same_state(one, other)
    assert summary["round"] == 6
    assert pretrain(config, tmp_path / "called") == summary, "a finished run is not trained again"


def test_own_network_and_data_from_training_to_a_report(tmp_path):
    path = tmp_path / "run"
    summary = pretrain(TRAINED | {"model": {"options": {"width": 4}}}, path, model=Listed, data=data())
    assert (summary["model"], summary["data"]) == ("helpers.own_networks:Listed", "mine")
    assert search_tickets(path, ratios=0.5) == [f"r{k}-group-l2-0.5" for k in range(3)]
    rows = retrain_tickets(path, "r2-group-l2-0.5", mode=["rewind", "random"], untimed=True)
    assert sorted(row["mode"] for row in rows) == ["random", "rewind"]
    assert write_report(path, tmp_path / "report").stat().st_size > 10_000


def test_a_module_that_exists_is_trained_from_its_own_parameters(tmp_path):
    from flax import nnx

    module = Listed(10, nnx.Rngs(5), width=4)
    pretrain(TRAINED, tmp_path / "run", model=module)
    start = load_checkpoint(tmp_path / "run", round=0)["variables"]["params"]
    np.testing.assert_array_equal(start["head"]["kernel"], module.head.kernel[...])
    pretrain(TRAINED, tmp_path / "linen", model=Small(10, width=4))
    code = f"import loft_jax; loft_jax.search_tickets({str(tmp_path / 'linen')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TESTS)
    assert "model.name=given:Small: is a network that was given from Python, to another process" in done.stderr


def test_it_runs_inside_an_event_loop(tmp_path):
    async def cell():
        return pretrain(TRAINED, tmp_path / "run")

    assert asyncio.run(cell())["round"] == 2


def test_after_jax_was_used_with_other_devices_it_says_what_has_no_effect(tmp_path):
    settings = TRAINED | {"mesh": {"cpu_devices": 3}, "train": {"rounds": 1}}
    code = f"import jax; jax.numpy.ones(3).sum(); import loft_jax; loft_jax.pretrain({settings!r}, {str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "JAX is in use already with 1 devices, so mesh.cpu_devices=3 has no effect" in done.stdout


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda path: pretrain({"loft": {"wrkers": 3}}, path),
            "config: unknown key loft.wrkers; did you mean loft.workers",
        ),
        (lambda path: pretrain("no_such_config", path), "--config no_such_config: neither a file nor a packaged"),
        (lambda path: pretrain(TRAINED, path, data=np.ones(3)), "data=ndarray: must be a data set, as image_data"),
        (lambda path: [pretrain(TRAINED, path, data=data(seed)) for seed in (0, 1)], "was begun with other data"),
        (lambda path: pretrain(TRAINED, path, model=lambda: 3), "does not take num_classes"),
        (lambda path: search_tickets(path), "is it a run directory"),
        (lambda path: search_tickets(path, ratois=0.5), "unknown option --ratois; did you mean --ratios"),
        (lambda path: write_report([path, path], path), "is the same run as"),
    ],
)
def test_what_a_command_refuses_is_an_exception_with_its_message(call, message, tmp_path):
    with pytest.raises(UserError, match=message):
        call(tmp_path / "run")
