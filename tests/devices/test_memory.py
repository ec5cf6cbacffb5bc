"""Memory that a program frees: kept for the next one, where the C library can."""

import platform
import resource
import subprocess
import sys

import pytest

STEPS = """
import resource
from loft_jax.config import Config
from loft_jax.devices import configure_jax
configure_jax(Config())
import jax, jax.numpy as jnp

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

# 64 MB that live inside the program only: two products, so that XLA cannot compute the one between them piece by piece.
x = jnp.ones((4096, 8))
step = jax.jit(lambda x: (x @ x.T) @ x)
for _ in range(20):
    step(x).block_until_ready()
before = faults()
for _ in range(20):
    step(x).block_until_ready()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TOP_PAD_": "131072"}, False)])
def test_a_program_gets_the_pages_of_the_last_one(monkeypatch, tmp_path, environment, kept):
    for name, value in {"LOFT_JAX_CACHE": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    pages = 20 * 64 * 2**20 // resource.getpagesize()
    assert (int(done.stdout) < pages / 2) is kept
