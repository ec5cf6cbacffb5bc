"""`--help` of every command: short, narrow, by section, and whole where that is asked for."""

import argparse
import sys
from importlib import import_module

import pytest

from loft_jax.__main__ import COMMANDS
from loft_jax.config import CommandLine, Config
from loft_jax.config.loading import iterate_fields
from loft_jax.errors import UserError


def help_of(command, monkeypatch, capsys, *sections, columns=80):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", [command, "--help", *sections])
    with pytest.raises(SystemExit) as end:
        import_module(f"loft_jax.{command}.__main__").main()
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_under_sixty_lines_of_eighty_columns(command, monkeypatch, capsys):
    lines = help_of(command, monkeypatch, capsys).splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) < 80
    assert lines[0].startswith(f"usage: python -m loft_jax.{command} ")


@pytest.mark.parametrize("command", ["tickets", "retrain", "report", "distances"])
def test_what_a_command_needs_stands_before_its_options(command, monkeypatch, capsys):
    text = help_of(command, monkeypatch, capsys)
    name = "CHECKPOINT" if command == "distances" else "RUN"
    assert text.splitlines()[0].split()[4].startswith(name)
    assert 0 < text.index("positional arguments:") < text.index("\noptions:")


def test_every_setting_is_in_its_section_and_in_the_whole_help(monkeypatch, capsys):
    whole = help_of("train", monkeypatch, capsys, "all")
    for key, _ in iterate_fields(Config):
        section = key.rpartition(".")[0] or "run"
        assert f"--{key} " in help_of("train", monkeypatch, capsys, section), key
        assert f"--{key} " in whole, key
    assert "--loft.workers" not in help_of("train", monkeypatch, capsys, "data")


def test_a_section_that_is_not_there_is_answered_with_the_nearest(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--help", "lofd"])
    with pytest.raises(UserError, match="--help lofd: no such section; did you mean loft"):
        import_module("loft_jax.train.__main__").main()


def test_nothing_is_lost_of_a_text_that_is_too_long_for_a_line():
    command = CommandLine("python -m loft_jax.x", "A first sentence. " * 20 + "\n\n  name      " + "word " * 30)
    assert isinstance(command.parser, argparse.ArgumentParser)
    text = " ".join(command.parser.format_help("all").split())
    assert ("A first sentence. " * 20).strip() in text
    assert ("word " * 30).strip() in text
