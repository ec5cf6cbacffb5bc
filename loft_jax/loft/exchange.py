"""`loft.sync: exchange`: filters stay sharded over the workers and go straight from each owner to the next.

No device holds the full CNN between rounds. With P floats in partitioned variables and F in shared ones, all devices
together send P (S - 1) / S + 2 (S - 1) F floats in a sync. `psum` sends 2 (S - 1) (P + F) in a ring, and in the paper
the server and the workers send 2 P + 2 S F.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.devices import PER_WORKER, REPLICATED, WORKER, shapes_with_specs, vary, wait_for_collective
from loft_jax.filters import (
    Cut,
    FilterGroup,
    ascending_indices,
    deal_partition,
    filter_cuts,
    flatten_paths,
    unflatten_paths,
    with_moments,
)
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.state import State
from loft_jax.loft.summed import Summed
from loft_jax.loft.sync import Masks
from loft_jax.loft.traffic import BYTES_OF_FLOAT, NO_TRAFFIC, Traffic, variable_sizes
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExchangeState:
    """The state between rounds: filters are with their owners, and no device holds all of them.

    Attributes:
      kept: as in the full state, on every device.
      owners: group name -> bool [S, n], on every device.
      round: completed rounds, on every device.
      shared: path -> variable that is not exchanged, whole and on every device.
      slices: path -> [S, ...], the owned slices of a partitioned variable, sharded over the workers.
    """

    kept: Any
    owners: Any
    round: Any
    shared: Any
    slices: Any


class Exchange:
    """Sends owned filters to their next owners in one all-to-all, and averages shared variables.

    The partition of a round is dealt from the one before it (`deal_partition`), so it is part of the state.

    A variable travels if one axis of it is the filters of one split group, and nothing else of it is cut. In a plain
    chain of layers a kernel belongs to the filters that it computes and to those that it reads, so no worker holds all
    of a filter. Such variables are summed, as under `loft.sync: psum`.

    Attributes:
      state_spec, masks_spec: sharding of the state at rest, and of a partition's masks, over the mesh.
    """

    state_spec = ExchangeState(
        kept=REPLICATED, owners=REPLICATED, round=REPLICATED, shared=REPLICATED, slices=PER_WORKER
    )
    masks_spec, holds_full = REPLICATED, False

    def __init__(self, config: Config, groups: Sequence[FilterGroup], mesh: Mesh):
        self._seed, self._workers, self._mesh = config.seed, config.loft.workers, mesh
        self._devices = mesh.shape[WORKER]
        self._turns = self._workers // self._devices
        split = [group for group in with_moments(groups) if group.partitioned]
        travelling = {path: cuts[0].axis for path, cuts in filter_cuts(split).items() if _travels(cuts)}
        axes = {
            group.name: {path: travelling[path] for path in sorted(group.axes) if path in travelling} for group in split
        }
        self._axes = {name: paths for name, paths in axes.items() if paths}
        self._shares = {group.name: group.width // self._workers for group in split}
        rest = [replace(g, axes={p: a for p, a in g.axes.items() if p not in travelling}) for g in split]
        self._summed, self._whole = Summed(rest, self._workers), Summed(split, self._workers)
        at_rest = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.state_spec)
        self._place = jax.jit(self._split_filters, out_shardings=at_rest)
        self._full = jax.jit(self._assemble, out_shardings=NamedSharding(mesh, REPLICATED))

    def place(self, full: State) -> ExchangeState:
        """Convert the full state, on every device of the mesh, to the state at rest."""
        return self._place(full)

    def full(self, state: ExchangeState) -> State:
        """Convert the state at rest to the full state, on every device of the mesh: an all-gather of the slices."""
        return wait_for_collective(self._full(state), self._mesh)

    def partition(self, state: ExchangeState) -> Masks:
        """Return the masks of the next round: group name -> bool [S, n]; row s is what worker s owns."""
        # A copy, because a sync receives both and may overwrite the state.
        return jax.tree.map(jnp.copy, state.owners)

    def compact(self, state: ExchangeState, masks: Masks, turn: jax.Array) -> State:
        """Inside shard_map: take from the state at rest the compact state of the worker that has this turn."""
        own = {path: jax.lax.dynamic_index_in_dim(s, turn, keepdims=False) for path, s in state.slices.items()}
        rows = self._own_rows(masks)
        rest = self._summed.take(unflatten_paths(vary(state.shared, WORKER)), rows, turn)
        kept = self._whole.take_kept(vary(state.kept, WORKER), rows, turn)
        return State.from_collections(unflatten_paths(own | flatten_paths(rest)), kept=kept)

    def combine(self, state: ExchangeState, masks: Masks, compacts: Sequence[State]) -> ExchangeState:
        """Inside shard_map: make the next state at rest from the compact states of a device's workers."""
        flat = [flatten_paths(compact.collections) for compact in compacts]
        rest = [unflatten_paths({path: compact[path] for path in state.shared}) for compact in flat]
        shared = self._summed.combine(unflatten_paths(state.shared), self._own_rows(masks), rest)
        following = state.round + 1
        owners = deal_partition(key_for(self._seed, Purpose.PARTITION, following), masks)
        return ExchangeState(
            kept=state.kept,
            owners=owners,
            round=following,
            shared=flatten_paths(shared),
            slices=self._send_filters(flat, masks, owners),
        )

    def traffic(self, full: State) -> Traffic:
        """Count the all-to-all of filters, every share at its largest, and the ring of shared variables and loss."""
        if self._devices == 1:
            return NO_TRAFFIC
        sizes, workers, moved = variable_sizes(full), self._workers, 0
        for name, axes in self._axes.items():
            width = workers * self._shares[name]
            filter_size = sum(sizes.pop(path) for path in axes if path in sizes) // width
            moved += workers * self._largest_share(name) * filter_size
        numbers = sum(sizes.values()) + self._summed.counted(full.collections)
        payloads = {"all-reduce": BYTES_OF_FLOAT * (numbers + 1)}
        if moved:
            payloads["all-to-all"] = BYTES_OF_FLOAT * workers // self._devices * moved
        return Traffic(payloads, self._devices)

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return the all-gather of `full`, by name."""
        sizes = variable_sizes(full)
        moved = {path for axes in self._axes.values() for path in axes if path in sizes}
        gathered = BYTES_OF_FLOAT * sum(sizes[path] for path in moved) // self._devices
        traffic = Traffic({"all-gather": gathered}, self._devices) if gathered and self._devices > 1 else NO_TRAFFIC

        def trace() -> jax.stages.Traced:
            return self._full.trace(shapes_with_specs(self.state_spec, jax.eval_shape(self.place, full), self._mesh))

        return {"assembly": RoundProgram(trace, 1, traffic)}

    def _send_filters(self, compacts: Sequence[Tree], old: Masks, new: Masks) -> Tree:
        """Return the new owners' slices. A filter travels as one row with all its numbers, from every variable."""
        if not self._axes:
            return {}
        turns, devices = self._turns, self._devices
        first = self._first_worker()
        outgoing = []
        for name, axes in self._axes.items():
            rows = jnp.stack([_pack_rows(compact, axes) for compact in compacts])
            own = self._own_rows(old)[name]
            filters = ascending_indices(own[:, None] & new[name], self._largest_share(name))
            places = jnp.cumsum(own, axis=1)[:, None] - 1
            # A share that is not full is padded with the worker's last filter, which the receiver leaves out.
            places = jnp.take_along_axis(places, jnp.minimum(filters, own.shape[1] - 1), axis=2)
            sent = jax.vmap(lambda row, place: row[place])(rows, places)
            outgoing.append(sent.reshape(turns, devices, turns, -1))
        sizes = [sent.shape[-1] for sent in outgoing]
        # [turn, device, turn of that device, floats]: the device axis is exchanged, in one message for all groups.
        incoming = jax.lax.all_to_all(jnp.concatenate(outgoing, axis=-1), WORKER, split_axis=1, concat_axis=1)
        incoming = jnp.split(incoming, list(accumulate(sizes))[:-1], axis=-1)
        slices = [self._receive(compacts[0], incoming, old, new, first, turn) for turn in range(turns)]
        return {path: jnp.stack([own[path] for own in slices]) for path in slices[0]}

    def _receive(
        self, like: Tree, incoming: Sequence[jax.Array], old: Masks, new: Masks, first: jax.Array, turn: int
    ) -> Tree:
        """Return one worker's slices, filters ascending, from what all workers sent to its device."""
        slices: Tree = {}
        for (name, axes), sent in zip(self._axes.items(), incoming, strict=True):
            size = self._largest_share(name)
            rows = sent[:, :, turn].swapaxes(0, 1).reshape(self._workers * size, -1)
            filters = ascending_indices(old[name] & new[name][first + turn], size).reshape(-1)
            slices |= _unpack_rows(rows[jnp.argsort(filters)[: self._shares[name]]], axes, like)
        return slices

    def _first_worker(self) -> jax.Array:
        """Inside shard_map: return the number of this device's first worker."""
        return jax.lax.axis_index(WORKER) * self._turns

    def _own_rows(self, masks: Masks) -> dict[str, jax.Array]:
        """Inside shard_map: return what this device's workers own, group name -> bool [T, n]."""
        first = self._first_worker()
        return {name: jax.lax.dynamic_slice_in_dim(mask, first, self._turns) for name, mask in masks.items()}

    def _largest_share(self, name: str) -> int:
        """Return the largest number of filters of a group that one worker sends to another."""
        return math.ceil(self._shares[name] / self._workers)

    def _split_filters(self, full: State) -> ExchangeState:
        flat = flatten_paths(full.collections)
        slices = {}
        for name, axes in self._axes.items():
            owned = ascending_indices(full.owners[name], self._shares[name])
            for path, axis in axes.items():
                if path in flat:
                    slices[path] = jnp.moveaxis(jnp.take(flat.pop(path), owned, axis=axis), axis, 0)
        return ExchangeState(kept=full.kept, owners=full.owners, round=full.round, shared=flat, slices=slices)

    def _assemble(self, state: ExchangeState) -> State:
        everywhere = NamedSharding(self._mesh, REPLICATED)
        flat = dict(state.shared)
        for name, axes in self._axes.items():
            order = jnp.argsort(ascending_indices(state.owners[name], self._shares[name]).reshape(-1))
            for path, axis in axes.items():
                if path in state.slices:
                    slices = jax.lax.with_sharding_constraint(state.slices[path], everywhere)
                    flat[path] = jnp.take(jnp.concatenate(list(slices), axis=axis), order, axis=axis)
        return State.from_collections(unflatten_paths(flat), kept=state.kept, owners=state.owners, round=state.round)


def _travels(cuts: tuple[Cut, ...]) -> bool:
    """Whether each entry of a variable belongs to exactly one filter."""
    return len(cuts) == 1 and cuts[0].whole


def _pack_rows(compact: Tree, axes: dict[str, int]) -> jax.Array:
    """Return the compact variables of a group as [k, floats], one row per filter."""
    leaves = [jnp.moveaxis(compact[path], axis, 0) for path, axis in axes.items() if path in compact]
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def _unpack_rows(rows: jax.Array, axes: dict[str, int], like: Tree) -> Tree:
    """Invert `_pack_rows`: path -> variable, in the shapes of the compact variables."""
    present = {path: axis for path, axis in axes.items() if path in like}
    sizes = [like[path].size // like[path].shape[axis] for path, axis in present.items()]
    parts = jnp.split(rows, list(accumulate(sizes))[:-1], axis=1)
    slices = {}
    for (path, axis), part in zip(present.items(), parts, strict=True):
        others = [n for a, n in enumerate(like[path].shape) if a != axis]
        slices[path] = jnp.moveaxis(part.reshape(-1, *others), 0, axis)
    return slices
