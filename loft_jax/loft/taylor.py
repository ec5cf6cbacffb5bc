"""What the loss would lose with each filter, to first order, measured on training batches of the full CNN."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Preparation
from loft_jax.devices import DATA, PER_DEVICE, REPLICATED, WORKER, DeviceLoop, replicate, vary
from loft_jax.filters import FilterGroup, gate_derivatives
from loft_jax.loft.images import make_images
from loft_jax.models import Network

Tree = dict[str, Any]


class TaylorScorer:
    """Scores filters by a first-order Taylor expansion of the loss (Molchanov et al., arXiv 1611.06440 and 1906.10771).

    A ticket sets to zero what reads the filters that it removes. To first order, that changes the loss of a batch by
    the sum of weight x gradient over what reads a filter, which is the derivative of the loss with respect to a gate on
    the filter's activations. Its absolute value, averaged over batches, is the score. What computes the filter would
    not do: where a batch norm follows, the loss does not change with the size of its kernel.

    The network is in evaluation: nothing is drawn, and norms use the statistics of the variables. The images are those
    on which norm statistics are estimated, not augmented; so scores depend on the variables and the run's seed alone.

    Args:
      count: number of training batches, of `data.batch_size` images each.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        groups: Sequence[FilterGroup],
        dataset: AnyDataset,
        mesh: Mesh,
        count: int,
    ):
        sections = {"train": {"norm_batches": count}, "data": {"augment": False}}
        config = config.model_copy(
            update={name: getattr(config, name).model_copy(update=changes) for name, changes in sections.items()}
        )
        self._model, self._groups, self._mesh, self._count = model, tuple(groups), mesh, count
        self._preparation = Preparation.from_dataset(dataset, augment=False)
        self._batches = make_images(config, dataset, mesh).norms
        self._loop = DeviceLoop(
            mesh,
            self._begin,
            self._step,
            math.ceil(count / mesh.size),
            in_specs=(REPLICATED, *self._batches.argument_specs),
            carry_spec=PER_DEVICE,
            feed_specs=self._batches.feed_specs,
        )

    def __call__(self, variables: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Score the filters of these variables, {"params", "batch_stats"}: group name -> float32 [n]."""
        with self._batches.feed() as feed:
            carry = self._loop(replicate(dict(variables), self._mesh), *self._batches.arguments, feed=feed)
        return {name: values.sum(axis=0) for name, values in jax.device_get(carry["scores"]).items()}

    def _begin(self, variables: Tree, *_: jax.Array) -> Tree:
        scores = {group.name: jnp.zeros(group.width, jnp.float32) for group in self._groups}
        same = {"scores": scores, "images": self._batches.begin()}
        return vary(same, (WORKER, DATA)) | {"batch": jax.lax.axis_index((WORKER, DATA))}

    def _step(self, carry: Tree, variables: Tree, *arguments: jax.Array) -> Tree:
        number = carry["batch"]
        images, labels = self._batches.pick(carry["images"], jnp.minimum(number, self._count - 1), *arguments)
        # Otherwise the gradients of all devices would be summed.
        variables = vary(variables, (WORKER, DATA))

        def loss_of(params: Tree) -> jax.Array:
            logits = self._model.apply({**variables, "params": params}, self._preparation.for_testing(images))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradients = jax.grad(loss_of)(variables["params"])
        derivatives = gate_derivatives(variables, {"params": gradients}, self._groups)
        # The number of devices may not divide that of batches; a batch past the last one has weight 0.
        weight = jnp.where(number < self._count, 1.0 / self._count, 0.0)
        scores = jax.tree.map(lambda total, d: total + weight * jnp.abs(d), carry["scores"], derivatives)
        return carry | {"scores": scores, "batch": number + self._mesh.size}
