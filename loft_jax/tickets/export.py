"""A ticket for other programs: its compact weights, and its network as a program that runs without this package."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save as to_safetensors

from loft_jax.files import write_atomically
from loft_jax.filters import flatten_paths, prune, unflatten_paths
from loft_jax.models import Network, variable_shapes
from loft_jax.tickets.snapshots import Snapshots
from loft_jax.tickets.ticket import Ticket

WEIGHTS, NETWORK = "weights.safetensors", "network.jax_export"
_PLATFORMS = ("cpu", "cuda", "tpu")


def export_weights(snapshots: Snapshots, ticket: Ticket) -> int:
    """Write the compact variables of a ticket, of its own snapshot, beside its ticket.json. Returns the file's bytes.

    The norm statistics are those of the full CNN, pruned: re-estimate them, or train, before evaluating.
    """
    compact = jax.device_get(prune(snapshots.variables(ticket.round), snapshots.groups, ticket.kept))
    arrays = {path: np.ascontiguousarray(values) for path, values in flatten_paths(compact).items()}
    content = to_safetensors(arrays, {"model": snapshots.config.model.name, "ticket": ticket.name})
    write_atomically(snapshots.directory.tickets / ticket.name / WEIGHTS, content)
    return len(content)


def export_network(snapshots: Snapshots, ticket: Ticket) -> int:
    """Write the compact network of a ticket, as `export_program` makes it. Returns the file's bytes."""
    network = snapshots.model.with_widths(ticket.widths)
    content = export_program(network, snapshots.image_shape)
    write_atomically(snapshots.directory.tickets / ticket.name / NETWORK, content)
    return len(content)


def export_program(network: Network, image_shape: tuple[int, ...]) -> bytes:
    """Serialize a network in evaluation as a program of `jax.export`, for CPU, CUDA and TPU.

    `jax.export.deserialize(content).call(weights, images)` gives float32 logits [batch, classes]. The weights are a
    dict of arrays by path, as in weights.safetensors; the images are float32 [batch, height, width, channels].

    Args:
      network: which has no weights of its own.
      image_shape: height, width, channels.

    Returns:
      The program. Its batch may have any size; of a network that cannot be traced so, it has one image.
    """

    def logits(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        return network.apply(unflatten_paths(dict(weights)), images)

    shapes = variable_shapes(network, image_shape)
    weights = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flatten_paths(shapes).items()}
    (any_size,) = jax.export.symbolic_shape("batch")

    def export(batch: Any) -> bytes:
        images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
        exported = jax.export.export(jax.jit(logits), platforms=_PLATFORMS)(weights, images)
        return bytes(exported.serialize())

    try:
        return export(any_size)
    except Exception:  # A network of a user's own may compute with the size of its batch.
        return export(1)
