"""States on disk, with Orbax: checkpoints to resume from (the newest few) and snapshots for tickets (all of them).

A checkpoint is {"variables", "training", "round"}: "variables" = {"params", "batch_stats"} are the full CNN's, with
norm statistics re-estimated on training batches, ready to evaluate; "training" holds what only the next round needs
(running norm statistics, carried momentum, owners of filters). A snapshot is {"variables", "round"}.
"""

import errno
import logging
import os
import sys
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from loft_jax.devices import reduce_over_processes
from loft_jax.errors import RunStopped, UserError
from loft_jax.storage.config_file import read_config_file
from loft_jax.storage.run_directory import CHECKPOINTS, CONFIG, SNAPSHOTS, RunDirectory
from loft_jax.storage.saved import saved_instead, saved_rounds
from loft_jax.storage.services import error_reason

Tree = dict[str, Any]

_CHECKSUMS = "checksums"

# Orbax logs every save, and the errors that it raises a second time, with a long traceback.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Store:
    """One directory of states by round. A state is there whole or not at all.

    One process saves in the background. Several wait, so that a failed write of one of them is known at once, and no
    process is left at a barrier that another one does not reach.
    """

    def __init__(self, directory: Path, keep: int | None = None):
        _ignore_late_ends()
        self._directory, self._owner = directory.resolve(), _owner_sum(directory)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=jax.process_count() == 1,
                cleanup_tmp_directories=True,
                multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=directory.name),
            ),
        )

    def save(self, round_number: int, tree: Tree) -> None:
        """Begin to save; returns when the arrays may be overwritten.

        Raises:
          RunStopped: this, or what was saved before, cannot be written.
        """
        with self._named(f"round {round_number}"):
            # Of arrays on several devices, Orbax would cut and copy each by itself: ten times as long.
            tree = jax.device_get(jax.tree.map(_on_this_host, tree))
            sums = np.append(_checksums(tree), np.uint32(self._owner))
            self._manager.save(round_number, args=ocp.args.PyTreeSave(tree | {_CHECKSUMS: sums}))

    def wait(self) -> None:
        """Return when everything saved is on disk. Raises RunStopped if it cannot be written."""
        with self._named("a round"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Return when nothing is being saved any more."""
        self._manager.close()

    @contextmanager
    def _named(self, what: str) -> Generator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise errors of any type, also for a full disk.
            if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError | TimeoutError):
                raise  # Another process has gone.
            full = os.strerror(errno.ENOSPC)
            reason = full if full in str(error) else error_reason(error)
            whole = ", ".join(map(str, saved_rounds(self._directory))) or "none"
            raise RunStopped(
                f"{self._directory}: {what} could not be saved ({reason}). States saved before are as they were (of "
                f"rounds: {whole}). Free some space, or make the directory writable, then run the same command again "
                "to resume"
            ) from error


def newest_sound(directory: Path) -> tuple[int, Tree] | None:
    """The newest round of a directory of states that can be read, and its state; None where nothing was ever saved.

    Warns of those that are damaged. With several processes it is the newest that all of them can read.

    Raises:
      UserError: all are damaged, or some process sees none where others do.
    """
    damage, found = [], None
    for saved in reversed(saved_rounds(directory)):
        try:
            found = saved, read_state(directory, saved)
            break
        except UserError as error:
            damage.append(str(error))
    own = found[0] if found else -1
    newest, most = reduce_over_processes(own, min), reduce_over_processes(own, max)
    if newest < 0 <= most:
        raise UserError(
            f"{directory}: not every process can read what is saved there; nothing was changed. Use a run directory on "
            f"a file system that all of them share{': ' if damage else ''}{'; '.join(damage)}"
        )
    if newest < 0 and damage:
        raise UserError(f"no checkpoint can be read: {'; '.join(damage)}. Start again, in another directory")
    if own > newest:
        damage.append(f"{directory / str(own)}: cannot be read by another process")
    for message in damage if jax.process_index() == 0 else ():
        print(f"warning: {message}; resuming from round {newest}", file=sys.stderr, flush=True)
    return found if found is None or own == newest else (newest, read_state(directory, newest))


def load_checkpoint(run_dir: str | Path, round: int | None = None) -> Tree:
    """The variables of a run at a round, from its checkpoints or snapshots, and its config; needs no mesh.

    Args:
      run_dir: directory of a run.
      round: completed rounds (0 = initialisation); None for the newest.

    Returns:
      {"variables": {"params": ..., "batch_stats": ...}, "round": int, "config": Config}: nested dicts of numpy arrays,
      float32. The norm statistics are those re-estimated for the full CNN, so `model.apply(variables, x)` evaluates as
      the run did. `load_dataset(config)` gives the run's data set, with the same test images: those of a config with
      another seed may have been trained on. Of a retraining, the config has the seed of its run. None where the
      directory holds no config, or where a retraining is no longer in the directory of its run.

    Raises:
      UserError: nothing is saved there, not that round, or it is damaged; or the config cannot be read.
    """
    directory = RunDirectory(run_dir)
    run_dir = directory.path
    kinds = {saved: kind for kind in (SNAPSHOTS, CHECKPOINTS) for saved in saved_rounds(run_dir / kind)}
    if not kinds:
        raise UserError(f"{run_dir}: holds no checkpoints or snapshots; is it a run directory of loft_jax.train?")
    if round is not None and round not in kinds:
        raise UserError(f"{run_dir}: round {round} is not saved; {saved_instead(kinds, round)}")
    found = max(kinds) if round is None else round
    tree = read_state(run_dir / kinds[found], found)
    return {"variables": tree["variables"], "round": int(tree["round"]), "config": directory.data_config()}


def read_state(directory: Path, round_number: int) -> Tree:
    """Read all that was saved of a round, as nested dicts of numpy arrays.

    Raises:
      UserError: what is read is not what was written.
    """
    path = directory.resolve() / str(round_number)
    _ignore_late_ends()
    try:
        # For this process alone: others may read another round, or none.
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(own, {own}, f"reader{own}")
        with ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
        ) as reader:
            tree = reader.metadata(path / "default").item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(tree))
            tree = reader.restore(path / "default", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # Orbax and TensorStore raise errors of any type for truncated or missing files.
        raise UserError(f"{path}: cannot be read ({_reason(path, error)})") from error
    # Orbax restores array data with a flipped byte without noticing.
    given = np.atleast_1d(tree.pop(_CHECKSUMS, np.zeros(0, np.uint32)))
    found = _checksums(tree)
    if not np.array_equal(given[: len(found)], found):
        raise UserError(f"{path}: is damaged (its checksums do not match)")
    owners = [_owner_sum(directory), *given[len(found) :].tolist()]
    # What earlier versions saved names no owner, and outside of a run there is none.
    if len(owners) == 2 and 0 not in owners and owners[0] != owners[1]:
        raise UserError(f"{path}: is the state of another run than that of the config.yaml there")
    if int(tree.get("round", round_number)) != round_number:
        raise UserError(f"{path}: holds the state of round {int(tree['round'])}, and has the name of another")
    return tree


def _on_this_host(leaf: Any) -> Any:
    """Return an array as this process can read it whole: a copy if others hold parts of it. All must call it."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def _reason(path: Path, error: Exception) -> str:
    manifest = path / "default" / "_METADATA"
    if not manifest.is_file():
        return f"default/{manifest.name}, its manifest, is missing"
    if isinstance(error, AttributeError | TypeError | KeyError | IndexError):
        return "its manifest is damaged"  # The text of the error is about Orbax's own code.
    return error_reason(error)


def _owner_sum(directory: Path) -> int:
    """Return a number for the owner of a run's states, as its config.yaml says; 0 where there is none."""
    config = directory.parent / CONFIG
    return zlib.crc32(read_config_file(config)[1].encode()) if config.exists() else 0


@cache
def _ignore_late_ends() -> None:
    """Hide the tracebacks of reads and writes that end after another one has failed.

    Orbax closes its event loop then, and Python would print "Event loop is closed" for each of them.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _checksums(tree: Tree) -> np.ndarray:
    return np.array([zlib.crc32(np.ascontiguousarray(leaf).data) for leaf in jax.tree.leaves(tree)], np.uint32)
