"""Devices that a run leaves idle, and the settings that would put them to work."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from pydantic import ValidationError

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Facts
from loft_jax.devices import WORKER, make_mesh
from loft_jax.errors import UserError
from loft_jax.methods.build import check_data, check_method
from loft_jax.models import Network

# Larger values are not tried: published networks have groups of at most so many filters.
_MOST = 512


def idle_advice(config: Config, model: Network, data: AnyDataset | Facts, devices: Sequence[jax.Device]) -> str:
    """Say how many devices a run leaves idle, and which settings use as many as possible; "" if none is idle.

    Only settings are named that model, data and devices allow, and that train as many workers at a time; of each kind
    the one nearest to the present value. `mesh.data` changes rounding only, and a run can be resumed with it.
    `loft.workers` and `gpipe.stages` make another run.

    Args:
      devices: all that there are, of all processes.
    """
    mesh = make_mesh(config, devices)
    used, rows = mesh.size, mesh.shape[WORKER]
    if used == len(devices):
        return ""
    found = [*_best_changes(config, len(devices), lambda changed: _count_used(changed, rows, model, data, devices))]
    most = max(count for *_, count in found)
    options = [_in_words(key, value) for key, value, count in found if count == most > used]
    keys = " or ".join(key for key, *_ in found)
    goal = "all" if most == len(devices) else most
    advice = [
        f"to use {goal}: {', or '.join(options)}" if options else f"no {keys} that model and batch allow uses more"
    ]
    if devices[0].platform == "cpu":
        each = used // len({device.process_index for device in devices})
        advice.append(f"mesh.cpu_devices={each} makes no more than are used")
    return "; ".join([f"{len(devices) - used} of {len(devices)} devices", *advice])


def _in_words(key: str, value: int | None) -> str:
    if value is None:
        return f"leave out {key}"
    return f"{key}={value}" if key == "mesh.data" else f"{key}={value} in a new run"


def _best_changes(
    config: Config, devices: int, count_used: Callable[[dict[str, Any]], int]
) -> Iterator[tuple[str, int | None, int]]:
    """Yield the value of each setting that uses most devices: (key, value, devices used)."""
    if config.mesh.worker is not None:
        yield "mesh.worker", None, count_used(_changed(config, "mesh.worker", None))
    for key in ["mesh.data", "loft.workers"] if config.gpipe.stages is None else ["gpipe.stages"]:
        section, field = key.split(".")
        now = getattr(getattr(config, section), field)
        used = {value: count_used(_changed(config, key, value)) for value in range(1, min(devices, _MOST) + 1)}
        best = max(used, key=lambda value: (used[value], -abs(value - now)))
        yield key, best, used[best]


def _changed(config: Config, key: str, value: int | None) -> dict[str, Any]:
    section, field = key.split(".")
    settings = config.model_dump()
    return settings | {section: settings[section] | {field: value}}


def _count_used(
    settings: dict[str, Any], rows: int, model: Network, data: AnyDataset | Facts, devices: Sequence[jax.Device]
) -> int:
    """Count the devices of a run with these settings; 0 if it is refused, or trains fewer workers at a time."""
    try:
        config = Config.model_validate(settings)
        check_method(model, config)
        check_data(config, data, config.data.name)
        mesh = make_mesh(config, devices)
    except (UserError, ValidationError):
        return 0
    return mesh.size if mesh.shape[WORKER] >= rows else 0
