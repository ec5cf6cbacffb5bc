"""A run's config.yaml: its settings, and in a comment whose rows and states those beside it are.

The comment holds the hash of the settings, so that a change of one that was trained with does not go unnoticed.
Settings that cannot change the result may be edited. Imports neither JAX nor NumPy.
"""

import re
import zlib
from functools import lru_cache
from pathlib import Path

import yaml

from loft_jax.config import Config, read_yaml, validate_settings
from loft_jax.errors import UserError
from loft_jax.files import write_atomically

_COMMENT = "# owner of the rows and states here:"


def owner_of(config: Config, what: str = "") -> str:
    """Return what tells the rows and states of a run from those of others: its settings, and `what` else there is."""
    return config.hash() + (f"-{zlib.crc32(what.encode()):08x}" if what else "")


def write_config_file(path: Path, config: Config, owner: str) -> None:
    """Write a config and its owner. Raises RunStopped if that is not possible."""
    write_atomically(path, f"{_COMMENT} {owner}\n{yaml.safe_dump(config.model_dump(), sort_keys=False)}")


def read_config_file(path: Path) -> tuple[Config, str]:
    """Read a config, and its owner.

    Raises:
      UserError: there is no such file, it does not hold the settings of a run, or one of them was changed.
    """
    if not path.exists():
        raise UserError(f"{path.parent}: holds no {path.name}; is it a run directory of loft_jax.train?")
    content = path.read_bytes() if path.is_file() else b""
    if path.is_file() and not content.strip():
        raise UserError(f"{path}: is empty; put the settings of the run back, or train another one")
    config = _parsed(path, content)
    found = re.match(rf"{_COMMENT} (\S*)".encode(), content)
    owner = owner_of(config) if found is None else found[1].decode(errors="replace")
    if owner.partition("-")[0] != config.hash():
        raise UserError(
            f"{path}: was changed: its settings are {config.hash()}, and the run was made with those of "
            f"{owner.partition('-')[0]}; put them back, as in the command that made the run, or train another run"
        )
    return config, owner


@lru_cache(maxsize=64)
def _parsed(path: Path, content: bytes) -> Config:
    """Parse a file of this content; a campaign reads the configs of its retrainings many times."""
    return validate_settings(read_yaml(path, label=str(path)), source=str(path))
