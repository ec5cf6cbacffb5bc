"""A run that starts from given weights: what is read, and what is refused."""

import jax
import numpy as np
import pytest
from helpers.runs import SMALL, assert_same_state, config_of, opened, train_rounds

from loft_jax import UserError, load_checkpoint
from loft_jax.filters import flatten_paths
from loft_jax.train.experiment import Experiment


@pytest.fixture(scope="module")
def weights():
    """Parameters and statistics of another seed's network."""
    state = Experiment.build(config_of(model=SMALL)).initial_state()
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.25), state.variables)


def started(path, file, **loft):
    config = config_of(model=SMALL | {"weights": str(file)}, train={"rounds": 2}, loft=loft)
    train_rounds(path, config, 0)
    return load_checkpoint(path, round=0)["variables"]


@pytest.mark.parametrize(("prefix", "loft"), [("params/", {}), ("", {"shared_every": 2})])
def test_a_run_starts_from_the_weights_of_a_file(weights, prefix, loft, tmp_path):
    """Also where each worker keeps shared variables of its own."""
    flat = {f"{prefix}{path}": leaf for path, leaf in flatten_paths(weights["params"]).items()}
    np.savez(tmp_path / "start.npz", **flat)
    assert_same_state(started(tmp_path / "run", tmp_path / "start.npz", **loft)["params"], weights["params"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flat: flat.pop("head/kernel"), r"start\.npz: holds no params/head/kernel, of \d+ variables"),
        (lambda flat: flat.update({"tail/kernel": np.ones(3)}), "holds params/tail/kernel, which the network does not"),
        (lambda flat: flat.update({"head/bias": np.ones(7)}), r"head/bias is \(7,\) there, and \(10,\) in the network"),
        (lambda flat: flat["head/bias"].fill(np.nan), "head/bias holds values that are not finite"),
        (lambda flat: flat.clear(), "start.npz"),
    ],
)
def test_weights_of_another_network_are_refused(weights, change, message, tmp_path):
    flat = {path: np.array(leaf) for path, leaf in flatten_paths(weights["params"]).items()}
    change(flat)
    np.savez(tmp_path / "start.npz", **flat)
    config = config_of(model=SMALL | {"weights": str(tmp_path / "start.npz")})
    with pytest.raises(UserError, match=message):
        train_rounds(tmp_path / "run", config, 0)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    config = config_of(model=SMALL | {"weights": "nowhere.npz"})
    with pytest.raises(UserError, match=r"model\.weights=nowhere\.npz: "):
        train_rounds(tmp_path / "run", config, 0)


def test_an_opened_run_keeps_the_name_of_the_file(tmp_path):
    config = config_of(model=SMALL | {"weights": "start.npz"})
    assert opened(tmp_path / "run", config).read_config().model.weights == "start.npz"
