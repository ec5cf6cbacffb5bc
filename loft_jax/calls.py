"""The commands as functions, for notebooks and programs: the same checks, with messages as exceptions.

Each prints what its command prints, with a bar of progress. A run that was interrupted goes on when the same call is
made again.
"""

from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from loft_jax.config import Config, apply_overrides, read_config
from loft_jax.console import guarded_output
from loft_jax.errors import UserError
from loft_jax.storage import RunDirectory

# Modules that import JAX are imported where they are needed, as in the commands.

_DATA = "data.npz"


@guarded_output()
def pretrain(
    config: Config | Mapping[str, Any] | str | Path, workdir: str | Path, *, model: Any = None, data: Any = None
) -> dict[str, Any]:
    """Train to the last round, as `python -m loft_jax.train` does.

    Args:
      config: a `Config`, its settings as nested dicts, the path of a YAML file, or the name of a packaged config.
      workdir: the run directory. If its run is finished, nothing is trained.
      model: a network of your own instead of the config's: a Flax Linen or NNX module, or a class or function that is
        called with `num_classes` and `model.options`, and for NNX also with `rngs`. A module that has parameters keeps
        them as its initialisation.
      data: a data set instead of the config's, as `image_data` makes it. It is kept in the run directory.

    Returns:
      The summary, as in summary.json.

    Raises:
      UserError: settings, network, data and directory do not fit each other; the message says what to do.
      RunStopped: the loss is no longer finite, or a file cannot be written.
    """
    settings = _settings(config)
    if model is not None:
        settings["model"] = _own_model(settings, model)
    if data is not None:
        settings["data"] = {**settings.get("data", {}), **_settings_of(data, RunDirectory(workdir, "workdir").path)}
    final = apply_overrides(settings, {}, source="config")
    from loft_jax.arithmetic import keep_jax_options
    from loft_jax.devices import configure_jax
    from loft_jax.train.__main__ import run

    with closing(RunDirectory(workdir, "workdir")) as directory:
        directory.open(final)
        if data is not None:
            _keep_data(data, directory.path)
        if summary := directory.summary():
            return summary
        with keep_jax_options():
            configure_jax(final)
            return run(final, directory)


@guarded_output()
def search_tickets(run: str | Path, *, model: Any = None, **options: Any) -> list[str]:
    """Search tickets in a run's snapshots, as `python -m loft_jax.tickets` does.

    Args:
      run: the run directory.
      model: the network again, if it was given to `pretrain` in another process.
      options: those of the command, without dashes: ratios=(0.8, 0.5), scope="global", norm="l1", reference=..., ...

    Returns:
      The names of the tickets in the run's directory.
    """
    _give(model)
    from loft_jax.arithmetic import keep_jax_options
    from loft_jax.tickets.__main__ import main

    with keep_jax_options():
        main(_arguments(run, options))
    return sorted(path.name for path in RunDirectory(run).tickets.iterdir() if path.is_dir())


@guarded_output()
def retrain_tickets(
    run: str | Path, tickets: str | Iterable[str], *, model: Any = None, **options: Any
) -> list[dict[str, Any]]:
    """Rewind and retrain tickets of a run, as `python -m loft_jax.retrain` does.

    Args:
      run: the run directory.
      tickets: their names.
      model: the network again, if it was given to `pretrain` in another process.
      options: those of the command, without dashes: mode=("rewind", "random"), seeds=(0, 1, 2), rewind_to=..., ...

    Returns:
      The rows of retrain/results.csv of these tickets.
    """
    _give(model)
    names = [tickets] if isinstance(tickets, str) else list(tickets)
    from loft_jax.arithmetic import keep_jax_options
    from loft_jax.retrain.__main__ import main
    from loft_jax.retrain.results import write_results

    with keep_jax_options():
        main(_arguments(run, {"ticket": names, **options}))
    return [row for row in write_results(RunDirectory(run)) if row["ticket"] in names]


@guarded_output()
def write_report(runs: str | Path | Iterable[str | Path], out: str | Path) -> Path:
    """Write a report of runs, as `python -m loft_jax.report` does; return the path of its page."""
    from loft_jax.arithmetic import keep_jax_options
    from loft_jax.report.__main__ import REPORT, main

    several = [runs] if isinstance(runs, str | Path) else list(runs)
    with keep_jax_options():
        main([*map(str, several), "--out", str(out)])
    return Path(out).expanduser() / REPORT


def _settings(config: Config | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(config, Config):
        return config.model_dump(exclude_unset=True)
    if isinstance(config, Mapping):
        return dict(config)
    return read_config(str(config))


def _own_model(settings: dict[str, Any], model: Any) -> dict[str, Any]:
    from loft_jax.models import give_network

    options = (settings.get("model") or {}).get("options", {})
    return {"name": give_network(model), **({"options": options} if options else {})}


def _give(model: Any) -> None:
    if model is not None:
        from loft_jax.models import give_network

        give_network(model)


def _settings_of(data: Any, workdir: Path) -> dict[str, Any]:
    """Return the settings that read a data set from the run directory."""
    from loft_jax.data import Dataset

    if not isinstance(data, Dataset):
        raise UserError(f"data={type(data).__name__}: must be a data set, as image_data(...) and load_dataset make it")
    return {"name": "arrays", "data_dir": str((workdir / _DATA).absolute()), "flip": data.flip}


def _keep_data(data: Any, workdir: Path) -> None:
    """Write the data set into the run directory; one that is there already stays, and training compares them."""
    from loft_jax.data import load_arrays, save_arrays

    file = workdir / _DATA
    if not file.exists():
        save_arrays(data, file)
    elif load_arrays(str(file)).fingerprint != data.fingerprint:
        raise UserError(f"data={data.name}: the run in {workdir} was begun with other data; use another directory")


def _arguments(run: str | Path, options: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line."""
    words = [str(run)]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            several = value if isinstance(value, list | tuple | set | range) else [value]
            words += map(str, several)
    return words
