"""What syncs keep beside the variables: for rarer averages, for messages of fewer bits, for the outer optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from loft_jax.config import Config
from loft_jax.devices import PER_WORKER, REPLICATED
from loft_jax.errors import UserError
from loft_jax.filters import FilterGroup, filter_cuts, with_moments
from loft_jax.loft.wire import Wire, rows_of

# Part -> {path of a variable: array}; a part that a run does not need is absent.
Beside = dict[str, dict[str, jax.Array]]

# Shared variables as they were last agreed on: "own" has what each worker has made of them, [S, ...].
AGREED, OWN = "agreed", "own"
# What rounding has left out of a worker's messages, rows [S, n, numbers of a filter]; and out of the messages about the
# averages that each worker has made of each fragment, [S, fragments, rows, numbers].
ERRORS, MEAN_ERRORS = "errors", "mean_errors"
# Momentum of the outer step, like the parameters.
OUTER = "outer"

_PER_WORKER = (OWN, ERRORS, MEAN_ERRORS)


def parts_of(config: Config) -> dict[str, PartitionSpec]:
    """Return the parts that a run keeps beside its variables, and how they are sharded over the mesh."""
    loft = config.loft
    parts = (AGREED, OWN) if loft.keeps_own else ()
    parts += () if loft.wire == "float32" else (ERRORS, MEAN_ERRORS)
    parts += () if loft.outer == "none" else (OUTER,)
    return {part: PER_WORKER if part in _PER_WORKER else REPLICATED for part in parts}


def start_beside(config: Config, groups: Sequence[FilterGroup], variables: Mapping[str, Any]) -> Beside | None:
    """Return what is kept beside the variables of a run's start, path -> array; None if it is nothing."""
    workers, wire = config.loft.workers, Wire(config.loft.wire)
    cut = filter_cuts(with_moments(group for group in groups if group.partitioned))
    axes = {path: axis for paths in travelling_axes(groups).values() for path, axis in paths.items()}
    shared = [path for path in variables if path not in cut]
    _check_shared(config, [variables[path] for path in shared])
    parts: Beside = {}
    if config.loft.keeps_own:
        parts[AGREED] = {path: variables[path] for path in shared}
        parts[OWN] = {path: jnp.stack([variables[path]] * workers) for path in shared}
    if config.loft.outer != "none":
        stepped = [path for path in variables if takes_outer_steps(path)]
        stepped = [path for path in stepped if path not in cut or config.loft.outer_filters]
        parts[OUTER] = {path: jnp.zeros_like(variables[path]) for path in stepped}
    if not wire.exact:
        rows = {path: rows_of(variables[path], axis) for path, axis in axes.items() if path in variables}
        if config.loft.sync == "exchange" and config.loft.outer_filters:
            rows |= {outer_path(path): row for path, row in rows.items() if takes_outer_steps(path)}
        rows |= {path: shared_rows(variables[path]) for path in shared}
        rows = {path: row for path, row in rows.items() if wire.rounds(path, row.shape[-1])}
        parts[ERRORS] = {path: jnp.zeros((workers, *row.shape)) for path, row in rows.items()}
        count = config.loft.stagger
        parts[MEAN_ERRORS] = {
            path: jnp.zeros((workers, count, rows_of_one(-(-len(row) // count), workers), row.shape[-1]))
            for path, row in rows.items()
            if path in shared
        }
    return parts or None


def _check_shared(config: Config, shared: Sequence[Any]) -> None:
    """Raise UserError for a setting of shared variables that has no effect, because there are none, or too few."""
    loft = config.loft
    for key, value, off in (("shared_every", loft.shared_every, 1), ("outer", loft.outer, "none")):
        if not shared and value != off and not (key == "outer" and loft.outer_filters):
            reason = "the network has no shared variables, because all are split"
            raise UserError(f"loft.{key}={value}: {reason}; leave it out")
    most = max((leaf.shape[-1] for leaf in shared if leaf.ndim), default=1)
    if loft.partition == "none" and loft.stagger > most:
        reason = f"no variable of the network has more than {most} filters, to be averaged in so many parts"
        raise UserError(f"loft.stagger={loft.stagger}: {reason}; try {most}")


def rows_of_one(rows: int, workers: int) -> int:
    """Return of how many rows, of so many, each worker makes the average."""
    return -(-rows // workers)


def takes_outer_steps(path: str) -> bool:
    """Whether a variable is a parameter: running statistics and moments are averaged."""
    return path.startswith("params/")


def outer_path(path: str) -> str:
    """Return the path of the trace of a parameter's outer steps, among variables that travel."""
    return f"{OUTER}/{path}"


def travelling_axes(groups: Sequence[FilterGroup]) -> dict[str, dict[str, int]]:
    """Return split group -> {path of a variable: axis} of the variables whose every entry is of exactly one filter.

    Of a plain chain of layers a kernel belongs to the filters that it computes and to those that it reads.
    """
    split = [group for group in with_moments(groups) if group.partitioned]
    whole = {path: cuts[0].axis for path, cuts in filter_cuts(split).items() if len(cuts) == 1 and cuts[0].whole}
    axes = {group.name: {path: whole[path] for path in sorted(group.axes) if path in whole} for group in split}
    return {name: paths for name, paths in axes.items() if paths}


def shared_rows(variable: jax.Array) -> jax.Array:
    """Return a shared variable as [n, size], a row for each index of its last axis."""
    return rows_of(variable, variable.ndim - 1) if variable.ndim else variable.reshape(1, 1)
