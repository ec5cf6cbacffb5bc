"""Lotteries that take seconds: levels of a small perceptron on digits."""

from helpers import TESTS
from loft_jax.config.config import Config
from loft_jax.lottery.settings import LotteryConfig

PLAIN = f"{TESTS / 'helpers/own_networks.py'}:Plain"
SETTINGS = {
    "model": {"name": PLAIN},
    "data": {"batch_size": 16, "validation": 0.2},
    "loft": {"workers": 1, "local_steps": 4},
    "optimizer": {"learning_rate": 0.05},
    "train": {"rounds": 4, "eval_every": 1, "checkpoint_every": 2, "keep_checkpoints": 5, "norm_batches": 2},
    "lottery": {"levels": 2, "controls": "random,reinit,init"},
}


def lottery_of(**changes) -> LotteryConfig:
    """The settings, with the fields of sections changed."""
    return LotteryConfig.model_validate(
        {**SETTINGS, **{name: {**SETTINGS.get(name, {}), **section} for name, section in changes.items()}}
    )


def training_of(**changes) -> Config:
    """Those of its trainings, of seed 0."""
    return lottery_of(**changes).training(0)
