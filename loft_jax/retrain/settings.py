"""The settings of a retraining: those of its run, for one worker. Imports no JAX."""

from collections.abc import Mapping

from loft_jax.config import ONE_WORKER, Config, GPipe, apply_overrides
from loft_jax.errors import UserError

# Settings that a retraining cannot have, and why.
_FIXED = {
    "model.": "a ticket belongs to its run's model",
    "data.name": "a ticket belongs to its run's data",
    "data.split": "there is one worker",
    "seed": "use --seeds",
    "loft.workers": "a ticket is retrained by plain SGD",
    "loft.partition": "there is one worker",
    "loft.sync": "there is one worker",
    "loft.deal": "there is one worker",
    "loft.rescale": "there is one worker",
    "loft.momentum": "there is one worker, which keeps its momentum",
    "loft.shared_every": "there is one worker",
    "loft.wire": "there is one worker",
    "loft.outer": "there is one worker",
    "loft.stagger": "there is one worker",
    "gpipe.": "a ticket is retrained by plain SGD",
    "train.stop": "a retraining ends with its last round",
    "train.snapshot": "a retraining takes no snapshots",
    "mesh.worker": "there is one worker; mesh.data spreads its batch",
    "distributed": "a ticket is retrained by one process",
}


def retrain_config(run: Config, overrides: Mapping[str, str]) -> Config:
    """Return the run's settings for one worker, with the overrides. Raises UserError on one that cannot be changed."""
    for key in overrides:
        for fixed, reason in _FIXED.items():
            if key.startswith(fixed):
                raise UserError(f"--{key}: cannot be changed for a retraining: {reason}")
    settings = run.model_dump()
    settings["loft"] |= ONE_WORKER | {"momentum": "carry"}
    settings["gpipe"] = GPipe().model_dump()
    settings["mesh"]["worker"], settings["train"]["stop_when"] = None, None
    settings["train"]["profile_rounds"] = "none"
    return apply_overrides(settings, dict(overrides), source="command line")
