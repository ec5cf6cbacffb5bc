"""The configs that come with the package: found by name, and the same runs as ever."""

import pytest
from helpers import CONFIGS
from helpers.settings_helpers import parse, refusal

from loft_jax.config.config import Config
from loft_jax.config.loading import packaged_configs, read_config, validate_settings
from loft_jax.lottery import LotteryConfig

# A run directory says by this hash whether it was made with the same settings, so none may ever change.
HASHES = {
    "cifar100_preresnet34_loft2": "7c673efd9a77",
    "cifar100_preresnet34_loft4": "be0be56985a8",
    "cifar100_preresnet34_sgd": "eb72467ec811",
    "cifar100_resnet34_loft2": "e7446f26d212",
    "cifar100_resnet34_loft4": "8c349ca65870",
    "cifar100_resnet34_sgd": "6f88a1a6b03c",
    "cifar10_preresnet34_loft2": "b763a59928bc",
    "cifar10_preresnet34_loft4": "11ba71154036",
    "cifar10_preresnet34_sgd": "b0bc20f82036",
    "cifar10_resnet34_loft2": "7761ba2d2001",
    "cifar10_resnet34_loft4": "692aa5bbd9b1",
    "cifar10_resnet34_sgd": "9068f3a4077e",
    "cifar10_small": "5e67f2fc7140",
    "digits": "c8ecaaa70855",
    "imagenet_preresnet18_loft2": "04ceb266f031",
    "imagenet_preresnet18_loft4": "720fd9f24c31",
    "imagenet_preresnet18_sgd": "9ab062e89e5a",
    "ist_fashion_2layer": "1aaadf719add",
    "ist_fashion_3layer": "30b235772e68",
    "ist_speech_2layer": "14b5f0b9b553",
    "ist_speech_3layer": "bcbef3701537",
    "messages_fashion": "328aec9880ab",
}

# Of the trainings of a lottery, with seed 0.
LOTTERIES = {"lottery_conv2_cifar10": "3e9ac3ca6733", "lottery_lenet300_fashion": "ad61e7b910b8"}


def test_every_config_is_packaged():
    assert (
        packaged_configs().keys() == {path.stem for path in CONFIGS.glob("*.yaml")} == {*HASHES, *LOTTERIES, "theory"}
    )


@pytest.mark.parametrize("name", LOTTERIES)
def test_a_packaged_lottery_has_the_trainings_it_had(name):
    assert validate_settings(read_config(name), name, LotteryConfig).training(0).hash() == LOTTERIES[name]


@pytest.mark.parametrize("name", HASHES)
def test_a_packaged_config_is_the_run_it_was(name):
    assert validate_settings(read_config(name), name).hash() == HASHES[name]


def test_a_name_is_a_packaged_config_and_a_path_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text("seed: 7")
    assert parse("--config", "digits").seed == 0
    assert parse("--config", "digits").mesh.cpu_devices == 4
    assert parse("--config", "digits.yaml") == parse("--config", "./digits.yaml") == Config(seed=7)
    (tmp_path / "mine").write_text("seed: 8")
    assert parse("--config", "mine").seed == 8, "a file without a suffix is a file"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "--config digit: neither a file nor a packaged config; did you mean digits?"),
        ("cifar10", "--config cifar10: neither a file nor a packaged config; did you mean cifar10_small?"),
        ("x", "--config x: neither a file nor a packaged config; packaged are cifar100_preresnet34_loft2, "),
        ("./digits", "--config ./digits: no such file; did you mean the packaged config, --config digits?"),
        (
            "configs/digits.yaml",
            "--config configs/digits.yaml: no such file; did you mean the packaged config, --config ",
        ),
        ("digit.yaml", "--config digit.yaml: no such file; did you mean digits?"),
        ("mine", "--config mine: neither a file nor a packaged config; did you mean mine.yaml?"),
        ("min.yaml", "--config min.yaml: no such file; did you mean mine.yaml?"),
    ],
)
def test_a_name_that_is_neither_names_the_nearest_packaged_config(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 1")
    assert refusal(read_config, name).startswith(message)
