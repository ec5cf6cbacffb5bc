"""`loft.sync: psum`: owned slices are summed to the full CNN, which every device holds between rounds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.devices import PER_WORKER, REPLICATED, WORKER, shapes_with_specs, vary, wait_for_collective
from loft_jax.filters import (
    FilterGroup,
    draw_partition,
    draw_ranked_partition,
    filter_cuts,
    filter_scores,
    flatten_paths,
    unflatten_paths,
    with_moments,
)
from loft_jax.loft.average import Average
from loft_jax.loft.beside import AGREED, ERRORS, OUTER, OWN, parts_of, shared_rows
from loft_jax.loft.fragments import Fragment
from loft_jax.loft.outer import OuterStep
from loft_jax.loft.program import RoundProgram
from loft_jax.loft.state import State, full_specs
from loft_jax.loft.summed import Summed
from loft_jax.loft.sync import Masks, own_rows
from loft_jax.loft.traffic import NO_TRAFFIC, Traffic
from loft_jax.loft.travel import Travel
from loft_jax.loft.wire import BYTES_OF_FLOAT, Wire
from loft_jax.randomness import Purpose, key_for

Flat = dict[str, Any]


class Psum:
    """Writes owned slices into zeros and sums them over the workers; averages shared variables.

    The state at rest is the full state, on every device, but for what is kept beside by worker. Every round draws a new
    partition. In low precision owners send what they changed to all devices (`Travel.publish`).

    Attributes:
      state_spec, masks_spec: sharding of the state at rest, and of a partition's masks, over the mesh; all devices know
        all masks where they receive filters from their owners.
      holds_full: whether every device holds the full state at rest.
    """

    def __init__(self, config: Config, groups: Sequence[FilterGroup], mesh: Mesh):
        self._seed, self._workers, self._devices = config.seed, config.loft.workers, mesh.shape[WORKER]
        self._split, self._mesh = tuple(group for group in groups if group.partitioned), mesh
        split = with_moments(self._split)
        wire = Wire(config.loft.wire)
        self._travel = Travel(() if wire.exact else self._split, self._workers, self._devices, wire)
        travelling = {path for axes in self._travel.axes.values() for path in axes}
        rest = [replace(g, axes={p: a for p, a in g.axes.items() if p not in travelling}) for g in split]
        self._summed, self._whole = Summed(rest, self._workers), Summed(split, self._workers)
        self._average, self._cuts = Average(config, self._devices), filter_cuts(split)
        self._outer = OuterStep.of_filters(config)
        self._ranked = config.loft.deal == "ranked"
        self.masks_spec = REPLICATED if self._travel.axes else PER_WORKER
        self._draw = jax.jit(self._draw_masks, out_shardings=NamedSharding(mesh, self.masks_spec))
        parts = parts_of(config)
        self.holds_full, self._parts = OWN not in parts, tuple(parts)
        self.state_spec = full_specs(config) if parts else REPLICATED
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.state_spec)
        self._place = jax.jit(self._take_agreed, out_shardings=shardings)
        self._full = jax.jit(self._take_means, out_shardings=shardings)

    def place(self, full: State) -> State:
        """Return the state at rest: the full state, but shared variables as they were last agreed on."""
        return self._place(full) if self._parts else full

    def full(self, state: State) -> State:
        """Return the full state: the state at rest, but the means of what workers keep their own of."""
        return state if self.holds_full else wait_for_collective(self._full(state), self._mesh)

    def partition(self, state: State) -> Masks:
        """Draw the masks of the next round: group name -> bool [S, n]; row s is what worker s owns."""
        return self._draw(state.round, state.variables if self._ranked else None)

    def compact(self, state: State, masks: Masks, turn: jax.Array) -> State:
        """Inside shard_map: take from the state at rest the compact state of the worker that has this turn."""
        full, kept = vary((state.collections, state.kept), WORKER)
        masks = self._own_rows(masks)
        own, beside = self._whole.take(full, masks, turn), self._beside(state)
        if not self._average.plain:
            flat = flatten_paths(own)
            flat |= self._average.own(self._divide(flatten_paths(state.collections))[1], beside, turn)
            own = unflatten_paths(self._travel.with_errors(flat, beside.get(ERRORS, {}), masks, turn))
        return State.from_collections(own, kept=self._whole.take_kept(kept, masks, turn))

    def combine(self, state: State, masks: Masks, compacts: Sequence[State], fragment: Fragment) -> State:
        """Inside shard_map: make the next state at rest from the compact states of a device's workers."""
        before, flat = flatten_paths(state.collections), [flatten_paths(compact.collections) for compact in compacts]
        summed, shared, travelling = self._divide(before)
        rest = [unflatten_paths({path: own[path] for path in summed}) for own in flat]
        after = flatten_paths(self._summed.combine(unflatten_paths(summed), self._own_rows(masks), rest))
        beside = self._beside(state)
        if travelling:
            found, beside[ERRORS] = self._travel.publish(before, flat, beside[ERRORS], masks)
            after |= found
        if self._outer:
            filters = {path: leaf for path, leaf in before.items() if path not in shared}
            after, beside[OUTER] = self._outer.step_all(filters, after, beside[OUTER])
        agreed, changed = self._average.combine(shared, beside, [{p: own[p] for p in shared} for own in flat], fragment)
        beside |= changed
        return State.from_collections(
            unflatten_paths(after | agreed),
            beside={part: unflatten_paths(tree) for part, tree in beside.items()} or None,
            round=state.round + 1,
            kept=state.kept,
        )

    def traffic(self, full: State, fragment: Fragment) -> Traffic:
        """Count the ring that sums everything, and how many workers hold an entry of two split groups (int32)."""
        if self._devices == 1:
            return NO_TRAFFIC
        flat = flatten_paths(full.collections)
        summed, shared, travelling = self._divide(flat)
        numbers = sum(leaf.size for leaf in summed.values()) + self._summed.counted(full.collections)
        payloads = {"all-reduce": BYTES_OF_FLOAT * (numbers + 1)}
        rows = {path: jax.eval_shape(shared_rows, leaf).shape for path, leaf in shared.items()}
        found = self._average.payloads(rows, fragment)
        if travelling:
            found["all-gather"] = found.get("all-gather", 0) + self._travel.published_bytes(flat)
        for kind, payload in found.items():
            payloads[kind] = payloads.get(kind, 0) + payload
        return Traffic(payloads, self._devices)

    def assembly(self, full: State) -> dict[str, RoundProgram]:
        """Return the program of `full`, by name; none where every device holds the full state."""
        shared = (full.beside or {}).get(AGREED)
        if shared is None:
            return {}
        payload = BYTES_OF_FLOAT * sum(leaf.size for leaf in jax.tree.leaves(shared))
        traffic = Traffic({"all-reduce": payload}, self._devices) if self._devices > 1 else NO_TRAFFIC

        def trace() -> jax.stages.Traced:
            return self._full.trace(shapes_with_specs(self.state_spec, jax.eval_shape(self.place, full), self._mesh))

        return {"assembly": RoundProgram(trace, 1, traffic)}

    def _divide(self, flat: Flat) -> tuple[Flat, Flat, Flat]:
        """Divide variables in what is summed, the shared ones that are not, and those that travel."""
        if self._average.plain:
            return flat, {}, {}
        travelling = {path for axes in self._travel.axes.values() for path in axes if path in flat}
        shared = {path: leaf for path, leaf in flat.items() if path not in self._cuts}
        summed = {path: leaf for path, leaf in flat.items() if path in self._cuts and path not in travelling}
        return summed, shared, {path: flat[path] for path in flat if path in travelling}

    def _own_rows(self, masks: Masks) -> Masks:
        """Inside shard_map: return what this device's workers own, group name -> bool [T, n]."""
        if self.masks_spec == PER_WORKER:
            return masks
        return own_rows(masks, self._workers // self._devices)

    def _beside(self, state: State) -> dict[str, Flat]:
        # A checkpoint leaves out what is empty.
        return {part: flatten_paths((state.beside or {}).get(part, {})) for part in self._parts}

    def _take_agreed(self, full: State) -> State:
        beside = self._beside(full)
        full = replace(full, beside={part: unflatten_paths(tree) for part, tree in beside.items()})
        return full.with_collections(unflatten_paths(flatten_paths(full.collections) | beside.get(AGREED, {})))

    def _take_means(self, state: State) -> State:
        beside = self._beside(state)
        means = {path: own.mean(axis=0) for path, own in beside[OWN].items()}
        beside[AGREED] = {path: leaf for path, leaf in flatten_paths(state.collections).items() if path in means}
        found = replace(state, beside={part: unflatten_paths(tree) for part, tree in beside.items()})
        return found.with_collections(unflatten_paths(flatten_paths(state.collections) | means))

    def _draw_masks(self, round_number: jax.Array, variables: Any) -> Masks:
        key = key_for(self._seed, Purpose.PARTITION, round_number)
        if not self._ranked:
            return draw_partition(key, self._split, self._workers)
        return draw_ranked_partition(key, self._split, self._workers, filter_scores(variables, self._split))
