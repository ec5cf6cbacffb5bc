"""Commands that are offered in messages: they can be pasted, whatever is in their paths."""

import ast
import itertools
import shlex
from pathlib import Path

import pytest

import loft_jax
from loft_jax.errors import offer

PACKAGE = Path(loft_jax.__file__).parent
# Where a command's own name is put together.
NAMES_ONLY = {PACKAGE / "errors.py", PACKAGE / "__main__.py"}


@pytest.mark.parametrize("path", ["runs/a", "my run", "it's", 'say "hi"', "$HOME", "a;b", "a\\b", "*", "-run", "~run"])
def test_an_offered_command_is_read_as_it_is_meant(path):
    words = shlex.split(offer("tickets", Path(path), "--ratios", "0.5"))
    assert words[:3] == ["python", "-m", "loft_jax.tickets"]
    assert (Path(words[3]), words[4:]) == (Path(path), ["--ratios", "0.5"])
    assert words[3][0] not in "-~"


def test_no_message_puts_a_path_behind_a_command_by_itself():
    found = []
    for file in sorted(set(PACKAGE.rglob("*.py")) - NAMES_ONLY):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for text, following in itertools.pairwise(parts):
                if isinstance(text, ast.Constant) and "python -m loft_jax" in text.value.rpartition(";")[2]:
                    found.append(f"{file.name}:{following.lineno}")
    assert found == []
