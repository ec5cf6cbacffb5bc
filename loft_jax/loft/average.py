"""Shared variables between rounds: averaged in float32 or in messages of fewer bits, each time or more rarely.

In low precision a worker sends what it changed, in as many parts as there are workers; each makes the average of one
part and sends that to all. Both messages are rounded, and what rounding left out is added to the next one (error
feedback, as in arXiv 2104.06069).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from loft_jax.config import Config
from loft_jax.devices import WORKER, vary
from loft_jax.loft.beside import ERRORS, MEAN_ERRORS, OUTER, OWN, Beside, rows_of_one, shared_rows, takes_outer_steps
from loft_jax.loft.fragments import Fragment
from loft_jax.loft.outer import OuterStep
from loft_jax.loft.wire import BYTES_OF_FLOAT, Wire, from_rows, split_last

Flat = Mapping[str, jax.Array]


class Average:
    """Brings the workers' shared variables together.

    Attributes:
      plain: whether nothing is kept beside: then the variables are summed with all others, and this class not needed.
    """

    def __init__(self, config: Config, devices: int):
        loft = config.loft
        self._workers, self._devices, self._turns = loft.workers, devices, loft.workers // devices
        self._wire = Wire(loft.wire)
        self._outer = OuterStep.from_config(config)
        self.plain = self._wire.exact and self._outer is None and not loft.keeps_own

    def own(self, agreed: Flat, beside: Beside, turn: jax.Array) -> dict[str, jax.Array]:
        """Inside shard_map: return the shared variables of the worker that has this turn."""
        own = beside.get(OWN)
        if own is None:
            return vary(dict(agreed), WORKER)
        return {path: jax.lax.dynamic_index_in_dim(own[path], turn, keepdims=False) for path in agreed}

    def combine(
        self, agreed: Flat, beside: Beside, trained: Sequence[Flat], fragment: Fragment
    ) -> tuple[dict[str, jax.Array], Beside]:
        """Inside shard_map: bring a fragment's share of the variables together.

        Args:
          agreed: path -> variable as last agreed on, the same on all devices.
          beside: parts as `start_beside` names them, [T, ...] of this device's workers where they are by worker.
          trained: what this device's workers have made of the variables, one dict a turn.
          fragment: whose share.

        Returns:
          The next `agreed`, and the parts of `beside` that changed.
        """
        stacked = {path: jnp.stack([own[path] for own in trained]) for path in agreed}
        if not fragment.averages:
            return dict(agreed), {OWN: stacked}
        rows = {path: jax.vmap(shared_rows)(own) for path, own in stacked.items()}
        parts = {path: fragment.part(row.shape[1]) for path, row in rows.items()}
        parts = {path: part for path, part in parts.items() if part.start < part.stop}
        before = {path: shared_rows(agreed[path])[part] for path, part in parts.items()}
        mine = {path: rows[path][:, part] for path, part in parts.items()}
        changed: Beside = {}
        if self._wire.exact:
            total = jax.lax.psum({path: own.sum(axis=0) for path, own in mine.items()}, WORKER)
            means = {path: own / self._workers for path, own in total.items()}
        else:
            means, changed = self._average_messages(before, mine, beside, fragment, parts)
        after, traces = self._step(before, means, beside, parts)
        following = {
            path: _with_rows(leaf, after[path], parts[path]) if path in parts else leaf for path, leaf in agreed.items()
        }
        if OWN in beside:
            news = vary(after, WORKER)
            changed[OWN] = {
                path: jnp.stack([_with_rows(each, news[path], parts[path]) for each in own]) if path in parts else own
                for path, own in stacked.items()
            }
        return following, changed | traces

    def payloads(self, sizes: Mapping[str, tuple[int, int]], fragment: Fragment) -> dict[str, int]:
        """Count the bytes that a device contributes: kind of collective -> bytes.

        Args:
          sizes: path -> (n, size), the rows of each shared variable.
          fragment: what is brought together.
        """
        if not fragment.averages:
            return {}
        numbers, messages = 0, 0
        for path, (length, size) in sizes.items():
            part = fragment.part(length)
            numbers += (part.stop - part.start) * size
            messages += rows_of_one(part.stop - part.start, self._workers) * self._wire.message_bytes(path, size)
        if self._wire.exact:
            return {"all-reduce": BYTES_OF_FLOAT * numbers}
        return {"all-to-all": self._turns * self._workers * messages, "all-gather": self._turns * messages}

    def _average_messages(
        self, before: Flat, mine: Flat, beside: Beside, fragment: Fragment, parts: Mapping[str, slice]
    ) -> tuple[dict[str, jax.Array], Beside]:
        """Return the mean rows, the same everywhere, and the next errors. Rows as in `combine`."""
        if not mine:
            return {}, {}
        errors, mean_errors = dict(beside[ERRORS]), dict(beside[MEAN_ERRORS])
        lossy = [path for path, rows in mine.items() if self._wire.rounds(path, rows.shape[-1])]
        start, sent = vary(dict(before), WORKER), dict(mine)
        # What is rounded is sent as its change, which is smaller; the rest as it is.
        for path in lossy:
            sent[path] = mine[path] - start[path] + errors[path][:, parts[path]]
        shares = {path: self._shares(rows) for path, rows in sent.items()}
        shapes = {path: rows.shape[-2:] for path, rows in shares.items()}
        messages = self._write(shares)
        written = self._read(messages, shapes)
        for path in lossy:
            missing = _join_shares(shares[path] - written[path], mine[path].shape[1])
            errors[path] = errors[path].at[:, parts[path]].set(missing)
        received = self._read(self._to_averagers(messages), shapes)
        means = {path: rows.sum(axis=1) / self._workers for path, rows in received.items()}
        for path in lossy:
            means[path] += mean_errors[path][:, fragment.number, : shapes[path][0]]
        messages = self._write(means)
        written = self._read(messages, shapes)
        for path in lossy:
            place = mean_errors[path].at[:, fragment.number, : shapes[path][0]]
            mean_errors[path] = place.set(means[path] - written[path])
        everyones = jax.lax.all_gather(messages, WORKER, to="invarying")
        result = {}
        for path, rows in self._read(everyones.reshape(self._workers, -1), shapes).items():
            rows = _join_shares(rows, len(before[path]))
            result[path] = before[path] + rows if path in lossy else rows
        return result, {ERRORS: errors, MEAN_ERRORS: mean_errors}

    def _shares(self, rows: jax.Array) -> jax.Array:
        """Return [T, rows, size] as what each worker makes the average of: [T, S, rows of one, size], with zeros."""
        each = rows_of_one(rows.shape[1], self._workers)
        padded = jnp.pad(rows, ((0, 0), (0, self._workers * each - rows.shape[1]), (0, 0)))
        return padded.reshape(len(rows), self._workers, each, -1)

    def _write(self, rows: Flat) -> jax.Array:
        """Return [..., rows, size] of several variables as one message: [..., length]."""
        messages = [self._wire.encode(path, of_one) for path, of_one in rows.items()]
        return jnp.concatenate([own.reshape(*own.shape[:-2], -1) for own in messages], axis=-1)

    def _read(self, messages: jax.Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
        """Invert `_write`, for rows of these shapes."""
        lengths = [rows * self._wire.message_length(path, size) for path, (rows, size) in shapes.items()]
        parts = split_last(messages, lengths)
        return {
            path: self._wire.decode(path, part.reshape(*part.shape[:-1], rows, -1), size)
            for (path, (rows, size)), part in zip(shapes.items(), parts, strict=True)
        }

    def _to_averagers(self, messages: jax.Array) -> jax.Array:
        """Inside shard_map: send messages [T, S, length] to all workers. Returns what they sent to these: as many."""
        by_device = messages.reshape(self._turns, self._devices, self._turns, -1)
        # [turn of the sender, device of the sender, turn here, length]
        received = jax.lax.all_to_all(by_device, WORKER, split_axis=1, concat_axis=1)
        return received.transpose(2, 1, 0, 3).reshape(self._turns, self._workers, -1)

    def _step(
        self, before: Flat, means: Flat, beside: Beside, parts: Mapping[str, slice]
    ) -> tuple[dict[str, jax.Array], Beside]:
        """Make an outer step of the parameters, if there is one. Returns the next rows, and the traces."""
        if self._outer is None:
            return dict(means), {}
        after, traces = dict(means), dict(beside[OUTER])
        for path in filter(takes_outer_steps, means):
            trace = shared_rows(traces[path])[parts[path]]
            after[path], trace = self._outer(before[path], means[path], trace)
            traces[path] = _with_rows(traces[path], trace, parts[path])
        return after, {OUTER: traces}


def _with_rows(variable: jax.Array, rows: jax.Array, part: slice) -> jax.Array:
    """Return a shared variable with these rows in place of a part of its own."""
    if not variable.ndim:
        return rows.reshape(())
    return from_rows(shared_rows(variable).at[part].set(rows), variable.ndim - 1, variable.shape)


def _join_shares(shares: jax.Array, count: int) -> jax.Array:
    """Return [..., S, rows of one, size] as [..., rows, size], without what was added at the end."""
    return shares.reshape(*shares.shape[:-3], -1, shares.shape[-1])[..., :count, :]
