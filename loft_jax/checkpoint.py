"""States on disk, with Orbax: checkpoints to resume from (the newest few) and snapshots for tickets (all of them).

A checkpoint is {"variables", "training", "round"}: "variables" = {"params", "batch_stats"} are the full CNN's, with
norm statistics re-estimated on training batches, ready to evaluate; "training" holds what only the next round needs
(running norm statistics, carried momentum, owners of filters). A snapshot is {"variables", "round"}.
"""

import logging
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from loft_jax.errors import UserError
from loft_jax.mesh import replicate
from loft_jax.run_directory import CHECKPOINTS, SNAPSHOTS, saved_rounds

Tree = dict[str, Any]

_CHECKSUMS = "checksums"

# Orbax and absl narrate every save at a level below error.
logging.getLogger("absl").setLevel(logging.ERROR)


class Store:
    """One directory of states by round. Saving is asynchronous, and a state is there whole or not at all."""

    def __init__(self, directory: Path, keep: int | None = None):
        self._directory = directory.resolve()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
            ),
        )

    def latest(self) -> int | None:
        """The newest round, or None."""
        return self._manager.latest_step()

    def save(self, round_number: int, tree: Tree) -> None:
        """Begin to save; returns when the arrays may be overwritten."""
        self._manager.save(round_number, args=ocp.args.PyTreeSave(tree | {_CHECKSUMS: _checksums(tree)}))

    def restore(self, round_number: int, like: Tree, mesh: Mesh) -> Tree:
        """The state of a round, a copy on every device of the mesh.

        Raises:
          UserError: it is damaged, or its structure, shapes and dtypes are not those of `like`.
        """
        tree = read_state(self._directory, round_number)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (tree, like))
        if shapes[0] != shapes[1]:
            raise UserError(f"{self._directory / str(round_number)}: holds the state of another model")
        return replicate(tree, mesh)

    def drop_after(self, round_number: int) -> None:
        """Delete what a run wrote after the round it now resumes from: it will be written again."""
        for later in [r for r in self._manager.all_steps() if r > round_number]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Return when everything saved is on disk; raises what saving raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def load_checkpoint(run_dir: str | Path, round: int | None = None) -> Tree:
    """The variables of a run at a round, from its checkpoints or snapshots; needs no mesh.

    Args:
      run_dir: directory of a run.
      round: completed rounds (0 = initialisation); None for the newest.

    Returns:
      {"variables": {"params": ..., "batch_stats": ...}, "round": int}: nested dicts of numpy arrays, float32. The norm
      statistics are those re-estimated for the full CNN, so `model.apply(variables, x)` evaluates as the run did.

    Raises:
      UserError: nothing is saved there, not that round, or it is damaged.
    """
    run_dir = Path(run_dir)
    kinds = {saved: kind for kind in (SNAPSHOTS, CHECKPOINTS) for saved in saved_rounds(run_dir / kind)}
    if not kinds:
        raise UserError(f"{run_dir}: holds no checkpoints or snapshots; is it a run directory of loft_jax.train?")
    if round is not None and round not in kinds:
        rounds = ", ".join(str(r) for r in sorted(kinds))
        raise UserError(f"{run_dir}: round {round} is not saved; saved are {rounds}")
    found = max(kinds) if round is None else round
    tree = read_state(run_dir / kinds[found], found)
    return {"variables": tree["variables"], "round": int(tree["round"])}


def read_state(directory: Path, round_number: int) -> Tree:
    """All that was saved of a round, as nested dicts of numpy arrays.

    Raises:
      UserError: what is read is not what was written.
    """
    path = directory.resolve() / str(round_number)
    advice = "delete that directory to go on from the round before it"
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata(path / "default").item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(tree))
            tree = reader.restore(path / "default", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # Orbax and TensorStore raise what they please for files that are cut or gone.
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {reason}); {advice}") from error
    # Orbax restores array data with a flipped byte without noticing.
    if not np.array_equal(tree.pop(_CHECKSUMS, None), _checksums(tree)):
        raise UserError(f"{path}: is damaged (its checksums do not match); {advice}")
    return tree


def _checksums(tree: Tree) -> np.ndarray:
    return np.array([zlib.crc32(np.ascontiguousarray(leaf)) for leaf in jax.tree.leaves(tree)], np.uint32)
