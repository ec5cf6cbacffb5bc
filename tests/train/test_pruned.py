"""A run of pruned weights: its checkpoint has them, it resumes to the same bits, and what is pruned stays zero."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.runs import assert_same_state, config_of, opened

from loft_jax.devices.mesh import replicate
from loft_jax.errors import UserError
from loft_jax.storage.checkpoints import read_state
from loft_jax.train.experiment import Experiment
from loft_jax.train.trainer import Trainer, train_to_the_end

SETTINGS = {
    "model": {"name": "lenet300", "width": 12},
    "data": {"batch_size": 8},
    "loft": {"local_steps": 2, "workers": 2},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "train": {"rounds": 4, "checkpoint_every": 2, "snapshot_every": 4, "norm_batches": 2},
}


def pruned_start(experiment):
    """The initialisation without about half of the weights of its kernels."""
    state = experiment.initial_state()
    kept = jax.tree.map(lambda leaf: (jnp.abs(leaf) > 0.05) | jnp.bool(leaf.ndim < 2), state.params)
    params = jax.tree.map(lambda here, leaf: jnp.where(here, leaf, 0), kept, state.params)
    return replicate(replace(state, params=params, kept=kept), experiment.mesh)


def interrupt(config, path):
    experiment = Experiment.build(config, pruned=True)
    with Trainer(experiment, opened(path, config)) as trainer:
        trainer.start(lambda: pruned_start(experiment))
        for _ in range(2):
            trainer.train_one_round()


@pytest.mark.parametrize("sync", ["psum", "exchange"])
def test_a_resumed_run_of_pruned_weights_is_bit_equal_to_an_undisturbed_one(sync, tmp_path):
    config = config_of(**(SETTINGS | {"loft": SETTINGS["loft"] | {"sync": sync}}))
    experiment = Experiment.build(config, pruned=True)
    train_to_the_end(experiment, opened(tmp_path / "whole", config), lambda: pruned_start(experiment))
    interrupt(config, tmp_path / "cut")
    resumed = Experiment.build(config, pruned=True)
    train_to_the_end(resumed, opened(tmp_path / "cut", config))
    whole, cut = (read_state(tmp_path / name / "checkpoints", 4) for name in ("whole", "cut"))
    assert_same_state(whole, cut)
    kept, params = whole["training"]["kept"], whole["variables"]["params"]
    for here, leaf in zip(jax.tree.leaves(kept), jax.tree.leaves(params), strict=True):
        assert not leaf[~here].any()
    assert 0.2 < np.mean(kept["dense1"]["kernel"]) < 0.8


def test_pruned_weights_are_not_trained_by_a_pipeline():
    with pytest.raises(UserError, match=r"gpipe\.stages=2: GPipe trains no pruned weights; leave it out"):
        Experiment.build(config_of(gpipe={"stages": 2}, loft={"workers": 1}), pruned=True)
