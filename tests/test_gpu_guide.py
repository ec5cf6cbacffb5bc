"""The guide to GPUs: its flags of XLA are known to this jaxlib, and have the defaults that it states."""

import os
import re
import subprocess
import sys

import jaxlib
import pytest
from helpers import ROOT
from jaxlib import xla_client

PAGE = (ROOT / "docs/guides/gpu.md").read_text(encoding="utf-8")
FLAGS = sorted(set(re.findall(r"(?<!`)`(--xla_\w+=[^`\s]*)`(?!`)", PAGE)))


def start(*flags):
    """Start JAX with these flags, on the CPU."""
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    code = "import jax; print(jax.devices())"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_every_flag_is_known():
    assert len(FLAGS) > 8
    done = start(*FLAGS)
    assert done.returncode == 0, done.stderr
    unknown = start("--xla_gpu_no_such_flag=true")
    assert unknown.returncode != 0
    assert "Unknown flag in XLA_FLAGS: --xla_gpu_no_such_flag=true" in unknown.stderr


@pytest.mark.skipif(f"jaxlib {jaxlib.version.__version__} " not in PAGE, reason="the page is about another jaxlib")
def test_defaults_are_those_of_the_jaxlib_that_the_page_names():
    compile_options = xla_client.CompileOptions()  # owns what is printed
    options = str(compile_options.executable_build_options.debug_options)
    table = PAGE.split("## Flags of XLA")[1].split("## ")[0]
    rows = re.findall(r"^\| `--(xla_\w+)=\S*` \| `([\w.-]+)`(?: and (six) others)? \|", table, re.MULTILINE)
    assert len(rows) == table.count("\n| `--xla_")
    for flag, default, others in rows:
        found = re.findall(rf"^{flag}: (.*)$", options, re.MULTILINE) or ["false"]
        assert default in found, flag
        assert len(found) == (7 if others else 1), flag
