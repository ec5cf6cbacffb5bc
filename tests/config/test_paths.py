"""`~` is the user's home in every path: of every command's options, of settings, and of calls from Python."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_runs import fake_run

from loft_jax import load_checkpoint, write_report
from loft_jax.__main__ import COMMANDS
from loft_jax.config import Parser, path_name
from loft_jax.config.data import Data
from loft_jax.data.arrays import load_arrays
from loft_jax.data.folder import load_folder
from loft_jax.data.idx import load_idx
from loft_jax.errors import UserError
from loft_jax.models.loading import load_source
from loft_jax.storage.weights import load_weights

# What an option that is a path shows in the help.
SHOWN = ("FILE", "DIR", "RUN", "RUN2[@ROUND]", "CHECKPOINT")
PATHS = {
    **{key: {"config"} for key in ("cost", "plan")},
    **{key: {"config", "workdir"} for key in ("train", "lottery", "study")},
    **{"theory": {"config", "out"}, "groups": {"config", "figure"}, "bench": {"json", "append"}},
    **{"tickets": {"run", "reference"}, "retrain": {"run"}, "report": {"run", "out"}},
    **{"distances": {"checkpoint", "reference", "out"}},
}


class SeenError(Exception):
    """Carries the parser of a command."""


def parser_of(command, monkeypatch):
    def seen(parser, *_):
        raise SeenError(parser)

    monkeypatch.setattr(Parser, "parse_known_args", seen)
    monkeypatch.setattr(sys, "argv", [command])
    with pytest.raises(SeenError) as caught:
        import_module(f"loft_jax.{command}.__main__").main()
    return caught.value.args[0]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_option_of_every_command_knows_the_home(command, monkeypatch, home):
    own = [action for action in parser_of(command, monkeypatch)._actions if "." not in action.dest]
    paths = {action.dest: action for action in own if action.metavar in SHOWN or action.type is path_name}
    assert paths.keys() == PATHS[command]
    for name, action in paths.items():
        assert action.type is not None, name
        assert action.type("~/x") == f"{home}/x", name
        assert action.type("x~/~") == "x~/~", name


def test_a_figure_of_groups_is_drawn_at_home(home, monkeypatch):
    from loft_jax.groups.__main__ import main

    monkeypatch.setattr(sys, "argv", ["groups", "--config", "digits", "--figure", "~/nowhere/x.svg"])
    with pytest.raises(UserError, match=f"--figure {home}/nowhere/x.svg: its directory does not exist"):
        main()


def test_paths_in_settings_know_the_home(home):
    images, labels = np.zeros((4, 3, 3, 1), np.uint8), np.array([0, 1, 0, 1])
    arrays = {f"{split}_{what}": value for split in ("train", "test") for what, value in
              (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(home / "own.npz", **arrays)
    assert load_arrays("~/own.npz").num_classes == 2
    (home / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data set"):
        load_folder(Data(name="folder", data_dir="~/empty"))
    with pytest.raises(UserError, match="holds no train-images"):
        load_idx("~/empty")
    (home / "net.py").write_text("def Net(num_classes):\n    raise ValueError('found')\n")
    with pytest.raises(UserError, match="found"):
        load_source("~/net.py:Net", {}, 10)
    np.savez(home / "weights.npz", **{"params/head/bias": np.zeros(2, np.float32)})
    weights = load_weights("~/weights.npz", {"params": {"head": {"bias": np.ones(2, np.float32)}}})
    assert not weights["params"]["head"]["bias"].any()


def test_calls_know_the_home(home):
    fake_run(home / "run")
    assert write_report("~/run", "~/report") == home / "report/report.html"
    assert (home / "report/report.html").exists()
    with pytest.raises(UserError, match=f"{home}/run: holds no checkpoints"):
        load_checkpoint("~/run")
    assert not Path("~").exists()
