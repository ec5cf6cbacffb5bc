"""The summary of a run: its schema, and reading and writing it. Imports neither JAX nor NumPy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loft_jax.storage.records import (
    Count,
    Finite,
    Hash,
    NonNegative,
    Row,
    Schema,
    Share,
    Text,
    UnsoundError,
    read_object,
    write_object,
)

PHASES = ("compile", "train", "sync", "evaluation")

# What a summary that was made from a part of the rows does not know is null.
_SCHEMA = Schema(
    needed={
        **dict.fromkeys(("model", "data", "method"), Text),
        **dict.fromkeys(("seed", "round"), Count),
        **{"epoch": NonNegative, "test/accuracy": Share, "test/loss": Finite},
        **dict.fromkeys(("images_per_second", *(f"seconds/{phase}" for phase in PHASES)), NonNegative | None),
    },
    optional={
        **{"train/loss": Finite, "validation/accuracy": Share, "validation/loss": Finite, "share_of_peak": NonNegative},
        **{"test/accuracy_best": Share, "round_best": Count, "epochs": NonNegative},
        **dict.fromkeys(("step", "images", "workers", "devices"), Count),
        **dict.fromkeys(("parameters", "parameters_sub_cnn", "sync_payload_bytes", "bytes_on_the_wire"), NonNegative),
        **dict.fromkeys(("partition", "device_kind", "jax", "stopped"), Text),
        **{"config_hash": Hash, "rounds_without_rows": list[Count]},
        # Of a retraining.
        **dict.fromkeys(("ticket", "mode", "scope", "norm", "rules"), Text),
        **dict.fromkeys(("rewind_to", "ticket_round", "rounds"), Count),
        **{"ratio": Share, "settings": Text, "run_config_hash": Hash},
        **dict.fromkeys(("parameters_unpruned", "flops_per_image", "flops_per_image_unpruned"), NonNegative),
        **dict.fromkeys(("steps_images_per_second", "steps_images_per_second_unpruned"), NonNegative),
    },
)


def read_summary(path: Path) -> Row | None:
    """Read a summary; None where there is none. Raises UnsoundError if it is no summary, or was changed."""
    return read_object(path, _SCHEMA)


def write_summary(path: Path, summary: Mapping[str, Any]) -> Row:
    """Write a summary. Returns it as it is written. Raises RunStopped if it cannot be written."""
    return write_object(path, summary, indent=2)


def check_belongs(path: Path, summary: Row, config_hash: str, seed: int) -> None:
    """Raise UnsoundError if a summary is that of a run with other settings."""
    for key, ours in (("config_hash", config_hash), ("seed", seed)):
        if summary.get(key) not in (None, ours):
            raise UnsoundError(f"{path}: is that of another run ({key}: {summary[key]} there, {ours} in config.yaml)")
