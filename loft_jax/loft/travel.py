"""How filters come from their owners to others: to their next owners, or to every device."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from loft_jax.devices import WORKER
from loft_jax.filters import FilterGroup, ascending_indices
from loft_jax.loft.beside import outer_path, takes_outer_steps, travelling_axes
from loft_jax.loft.sync import Masks, own_rows
from loft_jax.loft.wire import Wire, from_rows, rows_of, split_last

Flat = Mapping[str, jax.Array]
Rows = dict[str, jax.Array]


class Travel:
    """Sends filters of split groups, each as one message with all its numbers, from every variable.

    What rounding leaves out of a message stays with its sender, as an error of that filter. It is added when the filter
    is the sender's again: nothing is lost, but some of it comes later.

    Attributes:
      axes: split group -> {path of a variable: axis}, of the variables that travel.
      shares: split group -> number of its filters that a worker owns.
    """

    def __init__(self, groups: Sequence[FilterGroup], workers: int, devices: int, wire: Wire, *, traces: bool = False):
        """Make it for these groups; with `traces`, the trace of outer steps travels with its parameter."""
        self._wire, self._workers, self._devices, self._turns = wire, workers, devices, workers // devices
        self.axes = travelling_axes(groups)
        if traces:
            self.axes = {
                name: axes | {outer_path(path): axis for path, axis in axes.items() if takes_outer_steps(path)}
                for name, axes in self.axes.items()
            }
        self.shares = {group.name: group.width // workers for group in groups if group.partitioned}

    def numbers(self, flat: Mapping[str, Any]) -> dict[str, int]:
        """Return group -> numbers of all its filters, but traces, from full or compact variables or their shapes."""
        traces = outer_path("")
        return {
            name: sum(flat[path].size for path in axes if path in flat and not path.startswith(traces))
            for name, axes in self.axes.items()
        }

    def send(
        self, compacts: Sequence[Flat], errors: Flat, old: Masks, new: Masks, moved: Sequence[str]
    ) -> tuple[Rows, Rows]:
        """Inside shard_map: send filters to their next owners in one all-to-all.

        Args:
          compacts: path -> compact variable, of each of this device's workers.
          errors: path -> rows [T, n, size], what rounding left out before.
          old, new: group -> bool [S, n], who owns which filter, and who will.
          moved: groups that have new owners; the filters of others stay.

        Returns:
          path -> [T, ...], the workers' next slices; and the next errors.
        """
        rows = {name: self._rows(compacts, name) for name in self.axes}
        outgoing = []
        for name in moved:
            own = own_rows(old[name], self._turns)
            filters = ascending_indices(own[:, None] & new[name], self.largest_share(name))
            places = jnp.cumsum(own, axis=1)[:, None] - 1
            # A share that is not full is padded with the worker's last filter, which the receiver leaves out.
            places = jnp.take_along_axis(places, jnp.minimum(filters, own.shape[1] - 1), axis=2)
            sent = jax.vmap(lambda row, place: row[place])(self._write(rows[name]), places)
            outgoing.append(sent.reshape(self._turns, self._devices, self._turns, -1))
        if outgoing:
            # [turn, device, turn of that device, length]: the device axis is exchanged, in one message for all groups.
            incoming = jax.lax.all_to_all(jnp.concatenate(outgoing, axis=-1), WORKER, split_axis=1, concat_axis=1)
            parts = split_last(incoming, [sent.shape[-1] for sent in outgoing])
            for name, part in zip(moved, parts, strict=True):
                received = self._receive(part, rows[name], old[name], new[name], name)
                rows[name], errors = self._settle(rows[name], received, errors, old[name], new[name])
        return self._as_slices(rows, compacts[0]), dict(errors)

    def publish(self, reference: Flat, compacts: Sequence[Flat], errors: Flat, masks: Masks) -> tuple[Rows, Rows]:
        """Inside shard_map: send what owners changed of their filters to every device, in one all-gather.

        Args:
          reference: path -> full variable, which all devices hold.
          compacts, errors: as for `send`; errors of filters that the worker owns are in its variables already.
          masks: group -> bool [S, n], who owns which filter.

        Returns:
          path -> the next full variable, on every device; and the next errors.
        """
        messages, sizes, shapes = [], {}, {}
        errors = dict(errors)
        for name in self.axes:
            rows, indices = (
                self._rows(compacts, name),
                ascending_indices(own_rows(masks[name], self._turns), self.shares[name]),
            )
            lossy = [path for path, row in rows.items() if self._wire.rounds(path, row.shape[-1])]
            for path in lossy:
                rows[path] -= rows_of(reference[path], self.axes[name][path])[indices]
            message = self._write(rows)
            read = self._read(message, {path: row.shape[-1] for path, row in rows.items()})
            for path in lossy:
                errors[path] = _set_rows(errors[path], indices, rows[path] - read[path])
            messages.append(message.reshape(self._turns, -1))
            sizes[name], shapes[name] = {path: row.shape[-1] for path, row in rows.items()}, message.shape[1:]
        result: Rows = {}
        if not messages:
            return result, errors
        gathered = jax.lax.all_gather(jnp.concatenate(messages, axis=-1), WORKER, to="invarying")
        parts = split_last(gathered.reshape(self._workers, -1), [math.prod(shape) for shape in shapes.values()])
        for name, part in zip(shapes, parts, strict=True):
            indices = ascending_indices(masks[name], self.shares[name]).reshape(-1)
            found = self._read(part.reshape(len(indices), -1), sizes[name])
            for path, rows in found.items():
                before = rows_of(reference[path], self.axes[name][path])
                place = before.at[indices]
                after = place.add(rows) if self._wire.rounds(path, rows.shape[-1]) else place.set(rows)
                result[path] = from_rows(after, self.axes[name][path], reference[path].shape)
        return result, errors

    def with_errors(self, compact: Flat, errors: Flat, own: Masks, turn: Any) -> Rows:
        """Return a worker's compact variables with what rounding left out of its messages about these filters."""
        result = dict(compact)
        for name, axes in self.axes.items():
            indices = ascending_indices(own[name][turn], self.shares[name])
            for path in sorted(axes.keys() & errors.keys() & compact.keys()):
                missing = jax.lax.dynamic_index_in_dim(errors[path], turn, keepdims=False)[indices]
                result[path] = compact[path] + from_rows(missing, axes[path], compact[path].shape)
        return result

    def sent_bytes(self, flat: Mapping[str, Any], moved: Sequence[str]) -> int:
        """Count the bytes that a device contributes to the all-to-all of `send`, from full variables or shapes."""
        each = sum(self._message_bytes(flat, name) * self.largest_share(name) for name in moved)
        return self._turns * self._workers * each

    def published_bytes(self, flat: Mapping[str, Any]) -> int:
        """Count the bytes that a device contributes to the all-gather of `publish`, from full variables or shapes."""
        return self._turns * sum(self._message_bytes(flat, name) * self.shares[name] for name in self.axes)

    def largest_share(self, name: str) -> int:
        """Return the largest number of filters of a group that one worker sends to another."""
        return math.ceil(self.shares[name] / self._workers)

    def _message_bytes(self, flat: Mapping[str, Any], name: str) -> int:
        width = self._workers * self.shares[name]
        return sum(self._wire.message_bytes(path, flat[path].size // width) for path in self.axes[name] if path in flat)

    def _rows(self, compacts: Sequence[Flat], name: str) -> Rows:
        """Return the variables of a group as rows, path -> [T, k, size]."""
        present = {path: axis for path, axis in self.axes[name].items() if path in compacts[0]}
        return {path: jnp.stack([rows_of(own[path], axis) for own in compacts]) for path, axis in present.items()}

    def _write(self, rows: Rows) -> jax.Array:
        """Return one message for each filter: [..., length]."""
        return jnp.concatenate([self._wire.encode(path, row) for path, row in rows.items()], axis=-1)

    def _read(self, messages: jax.Array, sizes: Mapping[str, int]) -> Rows:
        """Invert `_write`, for rows of these sizes."""
        parts = split_last(messages, [self._wire.message_length(path, size) for path, size in sizes.items()])
        return {
            path: self._wire.decode(path, part, size) for (path, size), part in zip(sizes.items(), parts, strict=True)
        }

    def _receive(self, sent: jax.Array, like: Rows, old: jax.Array, new: jax.Array, name: str) -> Rows:
        """Return the rows of what this device's workers will own, filters ascending, from what all workers sent."""
        share = self.largest_share(name)
        own = own_rows(new, self._turns)
        found = []
        for turn in range(self._turns):
            messages = sent[:, :, turn].swapaxes(0, 1).reshape(self._workers * share, -1)
            filters = ascending_indices(old & own[turn], share).reshape(-1)
            found.append(messages[jnp.argsort(filters)[: self.shares[name]]])
        return self._read(jnp.stack(found), {path: row.shape[-1] for path, row in like.items()})

    def _settle(self, before: Rows, received: Rows, errors: Flat, old: jax.Array, new: jax.Array) -> tuple[Rows, Flat]:
        """Return the rows of what workers own, from those they had and what they received; and the next errors.

        A filter that stays is exact. One that comes gets the error that the worker has of it.
        """
        lossy = [path for path in received if self._wire.rounds(path, received[path].shape[-1])]
        if not lossy:
            return received, errors
        count = received[lossy[0]].shape[1]
        was, will = own_rows(old, self._turns), own_rows(new, self._turns)
        had, has = ascending_indices(was, count), ascending_indices(will, count)
        stay = jnp.take_along_axis(was, has, axis=1)[..., None]
        leave = ~jnp.take_along_axis(will, had, axis=1)[..., None]
        places = jnp.take_along_axis(jnp.cumsum(was, axis=1) - 1, has, axis=1)[..., None]
        rows, errors = dict(received), dict(errors)
        for path in lossy:
            size = received[path].shape[-1]
            rounded = self._wire.decode(path, self._wire.encode(path, before[path]), size)
            left = _set_rows(errors[path], had, jnp.where(leave, before[path] - rounded, 0))
            exact = jnp.take_along_axis(before[path], jnp.maximum(places, 0), axis=1)
            owed = jnp.take_along_axis(left, has[..., None], axis=1)
            rows[path] = jnp.where(stay, exact, received[path] + owed)
            errors[path] = _set_rows(left, has, jnp.zeros_like(owed))
        return rows, errors

    def _as_slices(self, rows: Mapping[str, Rows], like: Flat) -> Rows:
        slices = {}
        for name, of_group in rows.items():
            for path, row in of_group.items():
                axis, shape = self.axes[name][path], like[path].shape
                slices[path] = jnp.stack([from_rows(own, axis, shape) for own in row])
        return slices


def _set_rows(rows: jax.Array, indices: jax.Array, values: jax.Array) -> jax.Array:
    """Set rows [T, n, size] at indices [T, k] to values [T, k, size]."""
    return jax.vmap(lambda own, places, new: own.at[places].set(new))(rows, indices, values)
