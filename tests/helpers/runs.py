"""Runs of the train command that take seconds: a preresnet20 of width 4 on digits, over four workers."""

import numpy as np

from helpers import TESTS
from helpers.tiny import flat
from loft_jax.config.config import Config
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.train.experiment import Experiment
from loft_jax.train.trainer import Trainer

SETTINGS = {
    "model": {"width": 4},
    "data": {"batch_size": 8},
    "loft": {"local_steps": 2},
    "train": {"rounds": 6, "eval_every": 3, "checkpoint_every": 2, "snapshot_every": 4, "norm_batches": 2},
    "mesh": {"cpu_devices": 4},
}

# For what is the same whatever network is trained: with three blocks it takes a third of the time to trace and compile.
SMALL = {"name": f"{TESTS}/helpers/own_networks.py:residual", "width": None}

TICKET = "r6-group-l2-0.5"


def settings_with(**changes):
    return {**SETTINGS, **{name: {**SETTINGS.get(name, {}), **section} for name, section in changes.items()}}


def config_of(**changes):
    return Config.model_validate(settings_with(**changes))


def opened(path, config):
    directory = RunDirectory(path, "--workdir")
    directory.open(config)
    return directory


def train_rounds(path, config, count):
    """As many rounds of a run as are trained before it is interrupted."""
    with Trainer(Experiment.build(config), opened(path, config)) as trainer:
        trainer.start()
        for _ in range(count):
            trainer.train_one_round()


def assert_same_state(one, other):
    """Two trees of arrays have the same paths and the same bits."""
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)
