"""Idle devices: what is advised uses them, and is what model, batch and devices allow."""

import re
from dataclasses import dataclass

import pytest

from loft_jax import create_model
from loft_jax.config import Config
from loft_jax.data import Facts
from loft_jax.devices import make_mesh
from loft_jax.methods import check_method, idle_advice

SECTIONS = {
    "workers": "loft",
    "data": "mesh",
    "worker": "mesh",
    "stages": "gpipe",
    "batch_size": "data",
    "split": "data",
}


@dataclass(frozen=True)
class Device:
    """What a mesh looks at of a device."""

    id: int
    process_index: int = 0
    platform: str = "gpu"


def gpus(count, processes=1):
    return [Device(i, i * processes // count) for i in range(count)]


def config_of(**settings):
    nested = {}
    for name, value in {"batch_size": 128, **settings}.items():
        nested.setdefault(SECTIONS.get(name, "data"), {})[name] = value
    return Config.model_validate(nested)


def advice(devices, examples=50_000, width=None, **settings):
    model = create_model("preresnet20", 10, width=width)
    return idle_advice(config_of(**settings), model, Facts((32, 32, 3), 10, examples, 10_000), devices)


# Partitioned are groups of 32 and 64 filters, of a network of width 3 those of 6 and 12.
@pytest.mark.parametrize(
    ("devices", "settings", "expected"),
    [
        (gpus(4), {}, ""),
        (gpus(8), {}, "4 of 8 devices; to use all: mesh.data=2, or loft.workers=8 in a new run"),
        (gpus(8), {"workers": 1}, "7 of 8 devices; to use all: mesh.data=8, or loft.workers=8 in a new run"),
        (gpus(8), {"batch_size": 99}, "4 of 8 devices; to use all: loft.workers=8 in a new run"),
        (gpus(8), {"split": "disjoint", "examples": 7}, "4 of 8 devices; to use all: mesh.data=2"),
        (
            gpus(8),
            {"width": 3, "workers": 3},
            "5 of 8 devices; to use 6: mesh.data=2, or loft.workers=6 in a new run",
        ),
        (gpus(6), {}, "2 of 6 devices; no mesh.data or loft.workers that model and batch allow uses more"),
        (gpus(6), {"batch_size": 96, "workers": 2}, "4 of 6 devices; to use all: mesh.data=3"),
        (gpus(12), {}, "8 of 12 devices; to use 8: mesh.data=2, or loft.workers=8 in a new run"),
        (gpus(4), {"worker": 1}, "3 of 4 devices; to use all: leave out mesh.worker, or mesh.data=4"),
        (gpus(4), {"stages": 2}, "2 of 4 devices; to use all: gpipe.stages=4 in a new run"),
        (gpus(16, processes=2), {}, "12 of 16 devices; to use all: mesh.data=4, or loft.workers=16 in a new run"),
        (
            [Device(i, platform="cpu") for i in range(4)],
            {"workers": 2},
            "2 of 4 devices; to use all: mesh.data=2, or loft.workers=4 in a new run; mesh.cpu_devices=2 makes no more "
            "than are used",
        ),
    ],
)
def test_what_is_advised(devices, settings, expected):
    assert advice(devices, **settings) == expected


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("count", range(1, 20))
def test_what_is_advised_is_accepted_and_uses_so_many(count, workers):
    said = advice(gpus(count), workers=workers, batch_size=96)
    before = make_mesh(config_of(workers=workers, batch_size=96), gpus(count)).size
    assert said.startswith(f"{count - before} of {count} devices; ") == bool(said) == (before < count)
    goal = re.search(r"to use (\w+): ", said)
    for name, value in re.findall(r"\.(\w+)=(\d+)", said):
        changed = config_of(**{"workers": workers, "batch_size": 96, name: int(value)})
        check_method(create_model("preresnet20", 10), changed)
        used = make_mesh(changed, gpus(count)).size
        assert before < used == (count if goal[1] == "all" else int(goal[1]))
    assert bool(goal) == bool(re.search(r"=\d", said))
