"""Norm statistics and accuracy of the full CNN, spread over all devices of the mesh."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Preparation
from loft_jax.devices import (
    DATA,
    PER_DEVICE,
    REPLICATED,
    WORKER,
    DeviceLoop,
    shapes_with_sharding,
    vary,
    wait_for_collective,
)
from loft_jax.filters import flatten_paths, unflatten_paths
from loft_jax.loft.images import Images
from loft_jax.loft.orders import split_test
from loft_jax.models import Network
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


class NormEstimator:
    """Re-estimates the statistics of every norm, from `train.norm_batches` training batches.

    Running statistics gathered by sub-CNNs do not fit the full CNN: a sub-CNN's residual branch sums n/S filters, the
    full CNN's n. The batches are the same at every call, so the result is a function of the parameters alone.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        dataset: AnyDataset,
        mesh: Mesh,
        images: Images,
        *,
        fused: bool | None = None,
    ):
        # Weight 0 for the old value: the updated statistics are those of the batch.
        self._model = model.with_norms(momentum=0.0)
        self._seed, self._mesh, self._count = config.seed, mesh, config.train.norm_batches
        self._preparation = Preparation.from_dataset(dataset, augment=config.data.augment)
        self._batches = images.norms
        self._loop = DeviceLoop(
            mesh,
            self._begin,
            self._step,
            math.ceil(self._count / mesh.size),
            in_specs=(REPLICATED, *self._batches.argument_specs),
            carry_spec=PER_DEVICE,
            feed_specs=self._batches.feed_specs,
            fused=fused,
        )
        self._combine = jax.jit(_statistics, out_shardings=NamedSharding(mesh, REPLICATED))

    def __call__(self, variables: Tree) -> Tree:
        """Re-estimate "batch_stats": {"params", "batch_stats"} on the mesh -> the same with new "batch_stats".

        A network whose norms keep no statistics, or that has none, is returned as it is.
        """
        if not variables["batch_stats"]:
            return variables
        with self._batches.feed() as feed:
            carry = wait_for_collective(self._loop(variables, *self._batches.arguments, feed=feed), self._mesh)
        return {
            "params": variables["params"],
            "batch_stats": wait_for_collective(self._combine(carry["moments"]), self._mesh),
        }

    def trace(self, batch_stats: Tree) -> jax.stages.Traced:
        """Trace the program that combines what the devices have estimated, for these statistics or their shapes."""
        flat = flatten_paths(batch_stats)
        found = {p: jax.ShapeDtypeStruct((self._mesh.size, *leaf.shape), leaf.dtype) for p, leaf in flat.items()}
        return self._combine.trace(shapes_with_sharding(NamedSharding(self._mesh, PER_DEVICE), found))

    def _begin(self, variables: Tree, *_: jax.Array) -> Tree:
        moments = jax.tree.map(jnp.zeros_like, flatten_paths(variables["batch_stats"]))
        same = {"moments": moments, "images": self._batches.begin()}
        return vary(same, (WORKER, DATA)) | {"batch": jax.lax.axis_index((WORKER, DATA))}

    def _step(self, carry: Tree, variables: Tree, *arguments: jax.Array) -> Tree:
        number = carry["batch"]
        images, _ = self._batches.pick(carry["images"], jnp.minimum(number, self._count - 1), *arguments)
        key = key_for(self._seed, Purpose.NORM_STATISTICS, number)
        batch = self._preparation.for_training(images, key)
        rngs = {"dropout": jax.random.fold_in(key, Purpose.DROPOUT)}
        _, updated = self._model.apply(variables, batch, train=True, mutable=["batch_stats"], rngs=rngs)
        # The number of devices may not divide that of batches; a batch past the last one has weight 0.
        weight = jnp.where(number < self._count, 1.0 / self._count, 0.0)
        moments = jax.tree.map(
            lambda total, m: total + weight * m, carry["moments"], _moments(updated.get("batch_stats", {}))
        )
        return carry | {"moments": moments, "batch": number + self._mesh.size}


class Evaluator:
    """Measures loss and accuracy on the test set; every example counts once, for any number of devices.

    With `split="validation"`, on the images that are held out of the training images.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        dataset: AnyDataset,
        mesh: Mesh,
        images: Images,
        *,
        split: Literal["test", "validation"] = "test",
        fused: bool | None = None,
    ):
        self._examples = dataset.test_examples if split == "test" else dataset.validation_examples
        steps, *_ = split_test(config, self._examples, mesh)
        self._model, self._mesh, self._split = model, mesh, split
        self._preparation = Preparation.from_dataset(dataset, augment=False)
        self._batches = images.test if split == "test" else images.validation
        self._loop = DeviceLoop(
            mesh,
            self._begin,
            self._step,
            steps,
            in_specs=(REPLICATED, *self._batches.argument_specs),
            carry_spec=PER_DEVICE,
            feed_specs=self._batches.feed_specs,
            fused=fused,
        )
        self._total = jax.jit(lambda carry: jax.tree.map(jnp.sum, carry), out_shardings=NamedSharding(mesh, REPLICATED))

    def __call__(self, variables: Tree) -> dict[str, float]:
        """Test {"params", "batch_stats"}; returns {"test/loss": mean cross-entropy, "test/accuracy": in [0, 1]}.

        The names begin with the split.
        """
        with self._batches.feed() as feed:
            carry = wait_for_collective(self._loop(variables, *self._batches.arguments, feed=feed), self._mesh)
        total = jax.device_get(self._total(carry))
        return {
            f"{self._split}/loss": float(total["loss"]) / self._examples,
            f"{self._split}/accuracy": int(total["correct"]) / self._examples,
        }

    def _begin(self, *_: Any) -> Tree:
        start = {"step": jnp.int32(0), "loss": jnp.float32(0), "correct": jnp.int32(0)}
        return vary(start | {"images": self._batches.begin()}, (WORKER, DATA))

    def _step(self, carry: Tree, variables: Tree, *arguments: jax.Array) -> Tree:
        images, labels = self._batches.pick(carry["images"], carry["step"], *arguments)
        logits = self._model.apply(variables, self._preparation.for_testing(images), train=False)
        # A label of -1 marks padding.
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return carry | {
            "step": carry["step"] + 1,
            "loss": carry["loss"] + jnp.where(labels >= 0, losses, 0).sum(),
            "correct": carry["correct"] + (logits.argmax(axis=-1) == labels).sum(dtype=jnp.int32),
        }


def _moments(batch_stats: Tree) -> Tree:
    """Return the first and second raw moments, flat, under the paths of "mean" and "var"."""
    flat = flatten_paths(batch_stats)
    return {p: flat[p] if p.endswith("mean") else flat[p] + flat[_mean_path(p)] ** 2 for p in flat}


def _statistics(moments: Tree) -> Tree:
    """Sum the moments over devices (their leading axis) and convert them to means and variances."""
    total = {path: leaf.sum(axis=0) for path, leaf in moments.items()}
    flat = {p: total[p] if p.endswith("mean") else jnp.maximum(total[p] - total[_mean_path(p)] ** 2, 0) for p in total}
    return unflatten_paths(flat)


def _mean_path(var_path: str) -> str:
    return var_path.removesuffix("var") + "mean"
