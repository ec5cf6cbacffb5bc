"""The commands as they are called, in this process, where nothing that they accept is carried out."""

import ast
import contextlib
import importlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import yaml

from loft_jax.config.command_line import run_command
from loft_jax.config.config import Config
from loft_jax.config.loading import iterate_fields
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.theory.config import TheoryConfig
from loft_jax.tickets.ticket import Ticket

FIELDS = dict(iterate_fields(Config))
# A command of each kind of settings, and the option for its directory.
SETTINGS = {"train": Config, "theory": TheoryConfig}
DIRECTORY = {"train": "--workdir", "theory": "--out"}
TICKET = "r4-group-l2-0.5"
LONG = "x" * 300


class AcceptedError(BaseException):
    """The command took its input and turned to JAX; no Exception, lest anything catch it."""


def fill(path: Path) -> None:
    """Into an empty current directory: c.yaml, study.yaml, a run `run` that only looks trained, and what is no run."""
    directory = untrained("run")
    for saved in (0, 4):
        (directory.snapshots / str(saved)).mkdir(parents=True)
    ticket = Ticket({"stage2/block1": [0, 1]}, 0.5, "group", "l2", 4, "run", Config().hash())
    ticket.write(directory.tickets / ticket.name)
    (path / "c.yaml").write_text("seed: 1\n")
    (path / "study.yaml").write_text("settings: {a: {}}\nsteps: {all: {kind: train, seconds: 30}}\n")
    (path / "empty").mkdir()
    (path / "file").write_text("not a mapping")
    (path / "latin.yaml").write_bytes(b"seed: \xff")


def untrained(name: str) -> RunDirectory:
    """A run of the default config that has been started only, by nobody who is still there."""
    directory = RunDirectory(name)
    directory.path.mkdir()
    (directory.path / "config.yaml").write_text(yaml.safe_dump(Config().model_dump()))
    return directory


def refusal(command: str, *arguments: str, sees_devices: bool = False) -> str:
    """What a command says to its input, without the `error: ` before it.

    Args:
      sees_devices: let it go on to model, devices and data, which refuse some settings too.

    Raises:
      AcceptedError: it is not refused.
      AssertionError: exit code 2 and one message is not what came.
    """
    code, out, said = outcome(command, *arguments, sees_devices=sees_devices)
    assert code == 2, (code, out, said)
    # On a loaded machine a command may have said before that it is at work.
    said = "".join(line for line in said.splitlines(keepends=True) if not line.startswith("working "))
    out = "".join(line for line in out.splitlines(keepends=True) if not line.startswith("working "))
    assert out == "", out
    assert said.startswith("error: "), said
    assert said.count("error: ") == 1, said
    assert said.endswith("\n"), said
    return said[len("error: ") : -1]


def outcome(command: str, *arguments: str, sees_devices: bool = False) -> tuple[int, str, str]:
    """A command's exit code, and what it wrote to stdout and stderr. Raises AcceptedError, and whatever is a bug."""
    module = importlib.import_module(f"loft_jax.{command}.__main__")
    effect = None if sees_devices else AcceptedError
    with (
        mock.patch("loft_jax.devices.configure_jax", side_effect=effect),
        mock.patch("loft_jax.plan.planner.configure_jax", side_effect=effect),
        mock.patch("loft_jax.report.__main__.run", side_effect=AcceptedError),
        mock.patch("loft_jax.study.queue.Queue.work", side_effect=AcceptedError),
        mock.patch("loft_jax.theory.sweep.TheoremSweep.run", side_effect=effect),
        mock.patch.object(sys, "argv", [command, *arguments]),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        try:
            run_command(module.main)
        except SystemExit as stop:
            return stop.code, out.getvalue(), said.getvalue()
    return 0, out.getvalue(), said.getvalue()


def rules_of(path: Path) -> Iterator[tuple[int, re.Pattern]]:
    """Line, and what its message looks like, of each place in a file where something is refused.

    Left out are those that only hand on a message from elsewhere.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        call = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("ValueError", "UserError", "TypeError")):
            message = call.args[0]
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            constants = [re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in parts]
            if any(part.strip(".* ") for part in constants):
                yield node.lineno, re.compile("".join(constants), re.DOTALL)
