"""A run with images held out equals one on the other images, which tests on those that were held out."""

import numpy as np
import pytest
from helpers.runs import SMALL, assert_same_state, config_of, opened, train_rounds

from loft_jax.data.load import load_dataset
from loft_jax.storage.checkpoints import read_state
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.train.__main__ import print_summary, run

TRAIN = {"rounds": 4, "eval_every": 2, "checkpoint_every": 2}
METRICS = ("loss", "accuracy")


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    config = config_of(model=SMALL, data={"validation": 0.2, "augment": False}, train=TRAIN)
    path = tmp_path_factory.mktemp("validated") / "run"
    return path, config, run(config, opened(path, config))


def test_it_equals_a_run_on_the_rest_that_tests_on_what_was_held_out(validated, tmp_path):
    path, config, summary = validated
    data = load_dataset(config)
    np.savez(
        tmp_path / "rest.npz",
        train_images=data.train_images,
        train_labels=data.train_labels,
        test_images=data.validation_images,
        test_labels=data.validation_labels,
    )
    files = {"name": "arrays", "data_dir": str(tmp_path / "rest.npz"), "augment": False}
    rest = config_of(model=SMALL, data=files, train=TRAIN)
    tested = run(rest, opened(tmp_path / "rest", rest))
    assert_same_state(*(read_state(directory / "checkpoints", 4) for directory in (path, tmp_path / "rest")))
    rows, others = (RunDirectory(directory).rows() for directory in (path, tmp_path / "rest"))
    for metric in METRICS:
        assert summary[f"validation/{metric}"] == tested[f"test/{metric}"] != summary[f"test/{metric}"]
        held = [row.get(f"validation/{metric}") for row in rows]
        assert held == [row.get(f"test/{metric}") for row in others]
        assert [value is None for value in held] == [False, True, False, True, False]


@pytest.mark.full
def test_a_resumed_run_holds_out_the_same_images(validated, tmp_path):
    path, config, summary = validated
    train_rounds(tmp_path / "run", config, 3)
    resumed = run(config, opened(tmp_path / "run", config))
    assert_same_state(*(read_state(directory / "checkpoints", 4) for directory in (path, tmp_path / "run")))
    for metric in METRICS:
        assert resumed[f"validation/{metric}"] == summary[f"validation/{metric}"]


def test_the_last_lines_say_it(validated, capsys):
    print_summary(validated[2])
    said = capsys.readouterr().out
    assert f"{validated[2]['validation/accuracy']:.2%} on the images held out for validation" in said
