"""Settings of iterative pruning: what they say, and what is refused before anything is loaded."""

import pytest
import yaml
from helpers.refused import refusal

from loft_jax.config.config import Config, flatten
from loft_jax.config.loading import iterate_fields
from loft_jax.lottery.settings import Lottery, LotteryConfig

OWN = [key for key, _ in iterate_fields(LotteryConfig) if key.startswith("lottery.")]
HELD = {"data": {"validation": 0.1}}
WRONG = {
    "lottery.levels": ["0", "-1", "1001", "two", "2.5", ""],
    "lottery.prune": ["channels", "", "null"],
    "lottery.rates": ["*=0", "*=1", "*=1.5", "*=-0.2", "*=nan", "*=inf", "*=0_1", "*=\u0661", "*", "=0.2", "", ","],
    "lottery.scope": ["group", ""],
    "lottery.rewind_to": ["-1", "two", "1.5", "5 epochs", "", "step 5", "\u0661", "9" * 30],
    "lottery.controls": ["rando", "none,random", "random,random", "random,", "", "finetune"],
}
RULES = {
    "GPipe": (
        "--gpipe.stages 2",
        "gpipe.stages=2: a level is trained by LoFT, local SGD or plain SGD; leave gpipe.stages out",
    ),
    "processes": ("--distributed auto", "distributed: levels are trained by one process; leave distributed out"),
    "early end": ("--train.stop_when 0.1", "train.stop_when=0.1: all levels are trained for as long; leave it out"),
    "nothing held out": (
        "--data.validation 0",
        "data.validation=0.0: the step of least validation loss is",
    ),
    "rewind after the end": (
        "--train.rounds 5 --lottery.rewind_to 5",
        "lottery.rewind_to=5: must be before the end of the training, train.rounds=5 (80 local steps); try 0",
    ),
    "rewind to a step after the end": (
        "--train.rounds 5 --lottery.rewind_to 96steps",
        "lottery.rewind_to=96steps: must be before the end of the training",
    ),
    "rewind to a step inside a round": (
        "--lottery.rewind_to 500steps",
        "lottery.rewind_to=500steps: no round ends there, because a round has loft.local_steps=16; try 496 steps",
    ),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_value_out_of_range_is_refused_with_its_key(key, value, place):
    said = refusal("lottery", "--data.validation", "0.1", f"--{key}={value}", "--workdir", "w")
    assert said.startswith(f"command line: {key}=")
    assert "\n" not in said


def test_every_setting_has_wrong_values():
    assert list(WRONG) == OWN


@pytest.mark.parametrize("row", RULES)
def test_settings_that_do_not_go_together_are_refused(row, place):
    options, message = RULES[row]
    said = refusal("lottery", "--data.validation", "0.1", *options.split(), "--workdir", "w")
    assert said.removeprefix("command line: ").startswith(message)
    assert "\n" not in said


@pytest.mark.parametrize("wrong", [["*"], {"dense*": 2}, {"dense*": "much"}, {}, 0.2])
def test_a_file_with_wrong_rates_is_refused(wrong, place):
    (place / "rates.yaml").write_text(yaml.safe_dump({**HELD, "lottery": {"rates": wrong}}))
    said = refusal("lottery", "--config", "rates.yaml", "--workdir", "w")
    assert said.startswith("rates.yaml: lottery.rates=")


def test_a_mapping_is_the_same_as_text_and_keeps_its_order():
    rates = {"dense*": 0.2, "head": 0.1, "conv*": None}
    lottery = Lottery(rates=rates)
    assert lottery == Lottery(rates="dense*=0.2, head=0.1,conv*=none")
    assert list(lottery.rate_of_pattern.items()) == list(rates.items())
    assert Lottery(controls=["random", "reinit"]).control_names == ("random", "reinit")
    assert Lottery().control_names == ()


@pytest.mark.parametrize(
    ("given", "found"), [(0, 0), (3, 3), ("3", 3), ("48 steps", 3), ("48steps", 3), ("0 steps", 0)]
)
def test_a_rewind_is_a_round_or_a_step_at_the_end_of_one(given, found):
    assert LotteryConfig(**HELD, lottery={"rewind_to": given}).rewind_round == found


def test_a_training_has_the_settings_without_the_lottery_and_the_seed_asked_for():
    config = LotteryConfig(**HELD, train={"rounds": 7}, lottery={"levels": 3})
    assert config.training(5) == Config(**HELD, train={"rounds": 7}, seed=5)
    assert type(config.training(5)) is Config
    assert set(flatten(config)) == set(flatten(Config())) | set(OWN)
