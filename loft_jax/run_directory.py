"""A run's directory: every file name, the config it was made with, and its rows of metrics.

Imports neither JAX nor NumPy, so a finished or refused run says so at once.
"""

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from loft_jax.cli import read_yaml, validated
from loft_jax.config import RESUMABLE, Config, flatten
from loft_jax.errors import UserError

CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.jsonl", "summary.json"
CHECKPOINTS, SNAPSHOTS = "checkpoints", "snapshots"

Row = dict[str, Any]


class RunDirectory:
    """The directory of one run. Everything is written aside and renamed, but for the rows, which are appended."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / CHECKPOINTS
        self.snapshots = self.path / SNAPSHOTS
        self._metrics = self.path / METRICS

    def open(self, config: Config) -> None:
        """Make the directory, or check that it holds a run of the same config; write the config of a run to go on.

        Raises:
          UserError: it cannot be written, is no run directory, or was made with another config.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(f"--workdir {self.path}: cannot be written ({error.strerror}); use another") from None
        # A start that failed leaves nothing but its config, whole or not, and claims nothing.
        held = {path.name for path in self.path.iterdir()} - {CONFIG, f".{CONFIG}.tmp"}
        if held and not (self.path / CONFIG).exists():
            raise UserError(f"--workdir {self.path}: is not empty and holds no run; use another")
        if held:
            self._refuse_other(config)
        if self.summary() is None:
            self._write(CONFIG, yaml.safe_dump(config.model_dump(), sort_keys=False))

    def read_config(self) -> Config:
        """The config of the run. Raises UserError if there is none."""
        path = self.path / CONFIG
        if not path.exists():
            raise UserError(f"{self.path}: holds no {CONFIG}; is it a run directory of loft_jax.train?")
        return validated(read_yaml(path, label=str(path)), source=str(path))

    def append(self, row: Row) -> None:
        """Add one row of metrics."""
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[Row]:
        """All rows; a last one that was cut off while it was written is left out."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def cut_rows_after(self, round_number: int) -> None:
        """Forget rows past the round a run resumes from, so that each round stands once."""
        kept = [row for row in self.rows() if row["round"] <= round_number]
        self._write(METRICS, "".join(json.dumps(row) + "\n" for row in kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary; its presence says that the run is finished."""
        self._write(SUMMARY, json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None."""
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        return None

    def _refuse_other(self, config: Config) -> None:
        before, now = flatten(self.read_config()), flatten(config)
        differing = [key for key in now if key not in RESUMABLE and now[key] != before[key]]
        if differing:
            fields = "; ".join(f"{key}: {before[key]} there, {now[key]} now" for key in differing)
            raise UserError(
                f"--workdir {self.path}: holds a run with another config ({fields}); "
                "use another directory, or the settings it was made with"
            )

    def _write(self, name: str, text: str) -> None:
        aside = self.path / f".{name}.tmp"
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path / name)
