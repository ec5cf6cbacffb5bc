"""A run of a small network that goes on in a process of its own, on the platform that it is given.

    python -m helpers.elsewhere RUN PLATFORM ROUNDS

Trains as many rounds in deterministic mode, from where the run stands, and is then interrupted. Before that it sees
that the devices hold exactly what is on disk.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax

from helpers import ROOT, TESTS
from helpers.runs import SMALL, assert_same_state, opened, settings_with
from loft_jax.config.config import Config
from loft_jax.devices import configure_jax
from loft_jax.storage import read_state
from loft_jax.train.experiment import Experiment
from loft_jax.train.trainer import Trainer

# An accelerator's own float32, and not TF32: rounding must be all that is different.
MATMUL = {"matmul_precision": "highest"}
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu"}


def continue_on(platform, path, rounds, cache=None):
    """Start the process. `finish` waits for it."""
    environment = os.environ | {
        "JAX_PLATFORMS": PLATFORMS[platform],
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(ROOT))),
        **({"LOFT_JAX_CACHE": str(cache)} if cache else {}),
    }
    command = [sys.executable, "-m", "helpers.elsewhere", path, platform, rounds]
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes):
    """Wait for processes that must end well."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)


def main(path, platform, rounds):
    train = {"deterministic": True, "trackers": "none", "keep_checkpoints": 4}
    config = Config.model_validate(settings_with(model=SMALL, train=train) | MATMUL)
    configure_jax(config)
    assert jax.default_backend() == platform
    with Trainer(Experiment.build(config), opened(path, config)) as trainer:
        done = trainer.start()
        if done:
            saved = read_state(path / "checkpoints", done)
            held = jax.device_get(trainer._full())
            assert_same_state(held.checkpoint(saved["variables"])["training"], saved["training"])
            assert_same_state(held.params, saved["variables"]["params"])
        for _ in range(rounds):
            trainer.train_one_round()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
