"""XLA's options for a step: on a CPU with one device and several cores alone, and they change the program."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from loft_jax.devices.setup import step_options


def mesh(platform="cpu", size=1):
    devices = np.array([SimpleNamespace(platform=platform)] * size)
    return SimpleNamespace(devices=devices, size=size)


@pytest.fixture
def machine(monkeypatch):
    """Pretend that the process has so many devices and cores, and this version of JAX."""

    def pretend(devices=1, cores=2, version=(0, 10, 2)):
        monkeypatch.setattr("jax.local_device_count", lambda: devices)
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr("jax.__version_info__", version)

    return pretend


def test_one_device_with_several_cores_has_options(machine):
    machine()
    assert step_options(mesh()) is not None


@pytest.mark.parametrize(
    ("process", "where"),
    [
        ({"cores": 1}, {}),
        ({"devices": 4}, {}),
        ({"devices": 4}, {"size": 4}),
        ({"version": (0, 12, 0)}, {}),
        ({}, {"platform": "gpu"}),
    ],
)
def test_others_have_none(machine, process, where):
    machine(**process)
    assert step_options(mesh(**where)) is None


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="jax has no need of them from 0.11 on")
def test_they_change_the_program(machine):
    machine()
    x, kernel = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))

    def compiled(options):
        def convolve(x, kernel):
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        return jax.jit(convolve, compiler_options=options).lower(x, kernel).compile().as_text()

    assert compiled(step_options(mesh())) != compiled(None)
