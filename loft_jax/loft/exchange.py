"""`loft.sync: exchange`: filters stay sharded over the workers and go straight from each owner to the next.

No device holds the full CNN between rounds. With P floats in partitioned variables and F in shared ones, all devices
together send P (S - 1) / S + 2 (S - 1) F floats in a sync. `psum` sends 2 (S - 1) (P + F) in a ring, and in the paper
the server and the workers send 2 P + 2 S F.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.devices import PER_WORKER, REPLICATED, WORKER, shapes_with_specs, vary, wait_for_collective
from loft_jax.filters import (
    FilterGroup,
    ascending_indices,
    deal_partition,
    filter_cuts,
    flatten_paths,
    unflatten_paths,
    with_moments,
)
from loft_jax.loft.average import Average
from loft_jax.loft.beside import (
    AGREED,
    ERRORS,
    OUTER,
    OWN,
    Beside,
    outer_path,
    parts_of,
    shared_rows,
    takes_outer_steps,
)
from loft_jax.loft.fragments import Fragment
from loft_jax.loft.outer import OuterStep
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.state import State, full_specs
from loft_jax.loft.summed import Summed
from loft_jax.loft.sync import Masks, own_rows
from loft_jax.loft.traffic import NO_TRAFFIC, Traffic, variable_sizes
from loft_jax.loft.travel import Travel
from loft_jax.loft.wire import BYTES_OF_FLOAT, Wire
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExchangeState:
    """The state between rounds: filters are with their owners, and no device holds all of them.

    Attributes:
      beside: what the sync keeps beside the variables (`beside.py`), but for what is in the other attributes.
      kept: as in the full state, on every device.
      owners: group name -> bool [S, n], on every device.
      round: completed rounds, on every device.
      shared: path -> variable that is not exchanged, whole and on every device.
      slices: path -> [S, ...], the owned slices of a partitioned variable, sharded over the workers.
    """

    beside: Any
    kept: Any
    owners: Any
    round: Any
    shared: Any
    slices: Any


class Exchange:
    """Sends owned filters to their next owners in one all-to-all, and averages shared variables.

    The partition of a round is dealt from the one before it (`deal_partition`), so it is part of the state.

    A variable travels if one axis of it is the filters of one split group, and nothing else of it is cut
    (`travelling_axes`). Where it is cut in another way, no worker holds all of a filter: such variables are summed in
    float32, as under `loft.sync: psum`.

    Attributes:
      state_spec, masks_spec: sharding of the state at rest, and of a partition's masks, over the mesh.
    """

    masks_spec, holds_full = REPLICATED, False

    def __init__(self, config: Config, groups: Sequence[FilterGroup], mesh: Mesh):
        self._seed, self._mesh = config.seed, mesh
        workers, self._devices = config.loft.workers, mesh.shape[WORKER]
        self._turns = workers // self._devices
        split = [group for group in with_moments(groups) if group.partitioned]
        self._travel = Travel(groups, workers, self._devices, Wire(config.loft.wire), traces=config.loft.outer_filters)
        travelling = {path for axes in self._travel.axes.values() for path in axes}
        rest = [replace(g, axes={p: a for p, a in g.axes.items() if p not in travelling}) for g in split]
        self._summed, self._whole = Summed(rest, workers), Summed(split, workers)
        self._average, self._cuts = Average(config, self._devices), filter_cuts(rest)
        self._outer = OuterStep.of_filters(config)
        self._parts = tuple(parts_of(config))
        parts = {part: spec for part, spec in parts_of(config).items() if part != AGREED}
        self.state_spec = ExchangeState(
            beside=parts, kept=REPLICATED, owners=REPLICATED, round=REPLICATED, shared=REPLICATED, slices=PER_WORKER
        )
        at_rest = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.state_spec)
        self._place = jax.jit(self._split_filters, out_shardings=at_rest)
        everywhere = jax.tree.map(lambda spec: NamedSharding(mesh, spec), full_specs(config))
        self._full = jax.jit(self._assemble, out_shardings=everywhere)

    def place(self, full: State) -> ExchangeState:
        """Convert the full state, on every device of the mesh, to the state at rest."""
        return self._place(full)

    def full(self, state: ExchangeState) -> State:
        """Convert the state at rest to the full state: an all-gather of the slices, and the mean of shared variables.

        It is on every device of the mesh, but for what is kept beside by worker.
        """
        return wait_for_collective(self._full(state), self._mesh)

    def partition(self, state: ExchangeState) -> Masks:
        """Return the masks of the next round: group name -> bool [S, n]; row s is what worker s owns."""
        # A copy, because a sync receives both and may overwrite the state.
        return jax.tree.map(jnp.copy, state.owners)

    def compact(self, state: ExchangeState, masks: Masks, turn: jax.Array) -> State:
        """Inside shard_map: take from the state at rest the compact state of the worker that has this turn."""
        own = {
            path: jax.lax.dynamic_index_in_dim(s, turn, keepdims=False)
            for path, s in state.slices.items()
            if not path.startswith(outer_path(""))
        }
        rows = own_rows(masks, self._turns)
        summed, shared = self._divide(state.shared)
        rest = self._summed.take(unflatten_paths(vary(summed, WORKER)), rows, turn)
        kept = self._whole.take_kept(vary(state.kept, WORKER), rows, turn)
        own |= self._average.own(shared, state.beside, turn)
        return State.from_collections(unflatten_paths(own | flatten_paths(rest)), kept=kept)

    def combine(
        self, state: ExchangeState, masks: Masks, compacts: Sequence[State], fragment: Fragment
    ) -> ExchangeState:
        """Inside shard_map: make the next state at rest from the compact states of a device's workers."""
        flat = [flatten_paths(compact.collections) for compact in compacts]
        summed, shared = self._divide(state.shared)
        rest = [unflatten_paths({path: compact[path] for path in summed}) for compact in flat]
        summed_after = flatten_paths(self._summed.combine(unflatten_paths(summed), own_rows(masks, self._turns), rest))
        own = [{path: compact[path] for path in shared} for compact in flat]
        shared, changed = self._average.combine(shared, state.beside, own, fragment)
        beside = state.beside | changed
        following, moved = state.round + 1, self._moved(flat[0], fragment)
        left_out = self._travel.axes.keys() - moved
        dealt = {name: mask for name, mask in masks.items() if name not in left_out}
        owners = {**masks, **deal_partition(key_for(self._seed, Purpose.PARTITION, following), dealt)}
        if self._outer:
            flat = [self._outer_step(compact, state.slices, turn) for turn, compact in enumerate(flat)]
            summed_after, beside[OUTER] = self._outer.step_all(summed, summed_after, beside[OUTER])
        slices, errors = self._travel.send(flat, beside.get(ERRORS, {}), masks, owners, moved)
        if errors:
            beside[ERRORS] = errors
        return ExchangeState(
            beside=beside,
            kept=state.kept,
            owners=owners,
            round=following,
            shared=summed_after | shared,
            slices=slices,
        )

    def traffic(self, full: State, fragment: Fragment) -> Traffic:
        """Count the all-to-all of filters, every share at its largest, and the ring of shared variables and loss."""
        if self._devices == 1:
            return NO_TRAFFIC
        sizes = variable_sizes(full)
        flat = flatten_paths(full.collections)
        flat |= {outer_path(path): leaf for path, leaf in flat.items() if takes_outer_steps(path)}
        for axes in self._travel.axes.values():
            for path in axes:
                sizes.pop(path, None)
        summed, shared = self._divide(sizes)
        numbers = sum(summed.values()) + self._summed.counted(full.collections)
        payloads = {"all-reduce": BYTES_OF_FLOAT * (numbers + 1)}
        rows = {path: jax.eval_shape(shared_rows, flat[path]).shape for path in shared}
        found = [self._average.payloads(rows, fragment)]
        if moved := self._moved(flat, fragment):
            found.append({"all-to-all": self._travel.sent_bytes(flat, moved)})
        for kind, payload in (item for each in found for item in each.items()):
            payloads[kind] = payloads.get(kind, 0) + payload
        return Traffic(payloads, self._devices)

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return the program of `full`, by name."""
        flat = flatten_paths(full.collections)
        outer = flatten_paths((full.beside or {}).get(OUTER, {}))
        flat |= {outer_path(path): leaf for path, leaf in outer.items()}
        moved = {path for axes in self._travel.axes.values() for path in axes if path in flat}
        payloads = {
            "all-gather": BYTES_OF_FLOAT * sum(flat[path].size for path in moved) // self._devices,
            "all-reduce": BYTES_OF_FLOAT * sum(leaf.size for leaf in jax.tree.leaves((full.beside or {}).get(AGREED))),
        }
        payloads = {kind: payload for kind, payload in payloads.items() if payload}
        traffic = Traffic(payloads, self._devices) if payloads and self._devices > 1 else NO_TRAFFIC

        def trace() -> jax.stages.Traced:
            return self._full.trace(shapes_with_specs(self.state_spec, jax.eval_shape(self.place, full), self._mesh))

        return {"assembly": RoundProgram(trace, 1, traffic)}

    def _divide(self, shared: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Divide what does not travel in what is summed as under psum, and the shared variables."""
        if self._average.plain:
            return dict(shared), {}
        summed = {path: leaf for path, leaf in shared.items() if path in self._cuts}
        return summed, {path: leaf for path, leaf in shared.items() if path not in summed}

    def _moved(self, flat: Tree, fragment: Fragment) -> list[str]:
        """Name the groups whose filters a fragment sends."""
        if fragment.count == 1:
            return list(self._travel.axes)
        return fragment.moved(self._travel.numbers(flat))

    def _outer_step(self, compact: Tree, slices: Tree, turn: int) -> Tree:
        """Return a worker's compact variables with an outer step of its filters, and the traces of those."""
        assert self._outer is not None
        compact = dict(compact)
        for path in (path for axes in self._travel.axes.values() for path in axes if takes_outer_steps(path)):
            trace = outer_path(path)
            compact[path], compact[trace] = self._outer(slices[path][turn], compact[path], slices[trace][turn])
        return compact

    def _split_filters(self, full: State) -> ExchangeState:
        flat = flatten_paths(full.collections)
        # A checkpoint leaves out what is empty.
        beside: Beside = {part: flatten_paths((full.beside or {}).get(part, {})) for part in self._parts}
        flat |= beside.pop(AGREED, {})
        traces = {outer_path(path): leaf for path, leaf in beside.get(OUTER, {}).items()}
        slices = {}
        for name, axes in self._travel.axes.items():
            owned = ascending_indices(full.owners[name], self._travel.shares[name])
            for path, axis in axes.items():
                source = traces if path in traces else flat
                if path in source:
                    slices[path] = jnp.moveaxis(jnp.take(source.pop(path), owned, axis=axis), axis, 0)
        if OUTER in beside:
            beside[OUTER] = {path: leaf for path, leaf in beside[OUTER].items() if outer_path(path) in traces}
        return ExchangeState(
            beside=beside, kept=full.kept, owners=full.owners, round=full.round, shared=flat, slices=slices
        )

    def _assemble(self, state: ExchangeState) -> State:
        everywhere = NamedSharding(self._mesh, REPLICATED)
        flat, beside = dict(state.shared), dict(state.beside)
        if OWN in beside:
            beside[AGREED] = {path: flat[path] for path in beside[OWN]}
            flat |= {path: own.mean(axis=0) for path, own in beside[OWN].items()}
        traces: Tree = {}
        for name, axes in self._travel.axes.items():
            owned = ascending_indices(state.owners[name], self._travel.shares[name])
            order = jnp.argsort(owned.reshape(-1))
            for path, axis in axes.items():
                if path in state.slices:
                    slices = jax.lax.with_sharding_constraint(state.slices[path], everywhere)
                    target = traces if path.startswith(outer_path("")) else flat
                    target[path] = jnp.take(jnp.concatenate(list(slices), axis=axis), order, axis=axis)
        if OUTER in beside:
            beside[OUTER] |= {path.removeprefix(outer_path("")): leaf for path, leaf in traces.items()}
        return State.from_collections(
            unflatten_paths(flat),
            beside={part: unflatten_paths(tree) for part, tree in beside.items()} or None,
            kept=state.kept,
            owners=state.owners,
            round=state.round,
        )
