"""Norm statistics and accuracy of the full CNN, spread over all devices of the mesh."""

import math
from contextlib import closing, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from loft_jax.config import Config
from loft_jax.data import AnyDataset, Augmentation, StreamedDataset, normalise
from loft_jax.devices import DATA, PER_DEVICE, REPLICATED, WORKER, DeviceLoop, distribute, settle, shapes_on, vary
from loft_jax.loft.feeds import FEED_SPECS, FixedFeed, TrainingData
from loft_jax.randomness import Purpose, key_for

Tree = dict[str, Any]


class NormEstimator:
    """Population statistics of every norm, from the statistics of `train.norm_batches` training batches.

    Running statistics gathered by sub-CNNs do not fit the full CNN: a sub-CNN's residual branch sums n/S filters, the
    full one n. The batches are the same at every call, so the result is a function of the parameters.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        dataset: AnyDataset,
        mesh: Mesh,
        *,
        fused: bool | None = None,
    ):
        # Weight 0 for the old value: the updated statistics are those of the batch.
        self._model = model.clone(norm_momentum=0.0)
        self._seed, self._mesh = config.seed, mesh
        self._batches, self._batch_size = config.train.norm_batches, config.data.batch_size
        self._examples = dataset.examples
        self._augmentation = Augmentation(dataset.crop_padding, dataset.flip) if config.data.augment else None
        self._mean, self._std = dataset.channel_statistics
        self._feed = self._training_batches(config, dataset) if dataset.streamed else None
        self._loop = DeviceLoop(
            mesh,
            self._begin,
            self._step,
            math.ceil(self._batches / mesh.size),
            in_specs=(REPLICATED,) if self._feed else (REPLICATED, REPLICATED),
            carry_spec=PER_DEVICE,
            feed_specs=FEED_SPECS if self._feed else (),
            fused=fused,
        )
        self._combine = jax.jit(_statistics, out_shardings=NamedSharding(mesh, REPLICATED))

    def __call__(self, variables: Tree, data: TrainingData) -> Tree:
        """{"params", "batch_stats"} on the mesh, and the training set -> the same with new "batch_stats"."""
        arguments = () if self._feed else (data.images,)
        with closing(self._feed()) if self._feed else nullcontext() as feed:
            carry = settle(self._loop(variables, *arguments, feed=feed), self._mesh)
        return {"params": variables["params"], "batch_stats": settle(self._combine(carry["moments"]), self._mesh)}

    def lowered(self, batch_stats: Tree) -> jax.stages.Lowered:
        """The program in which devices share what they have found, for these statistics or their shapes."""
        flat = flatten_dict(batch_stats, sep="/")
        found = {p: jax.ShapeDtypeStruct((self._mesh.size, *leaf.shape), leaf.dtype) for p, leaf in flat.items()}
        return self._combine.lower(shapes_on(NamedSharding(self._mesh, PER_DEVICE), found))

    def _order(self) -> jax.Array:
        """The examples of each batch, int32 [batches, batch]."""
        permutation = jax.random.permutation(key_for(self._seed, Purpose.NORM_STATISTICS), self._examples)
        return jnp.resize(permutation, (self._batches, self._batch_size))

    def _training_batches(self, config: Config, dataset: StreamedDataset) -> FixedFeed:
        steps = math.ceil(self._batches / self._mesh.size)
        positions = np.full((steps * self._mesh.size, self._batch_size), -1)
        positions[: self._batches] = np.arange(self._batches * self._batch_size).reshape(self._batches, -1)
        positions = positions.reshape(steps, self._mesh.size, self._batch_size)
        crop = (self._seed, Purpose.NORM_STATISTICS) if config.data.augment else None
        return FixedFeed(dataset, self._mesh, "train", np.asarray(jax.jit(self._order)()).ravel(), positions, crop)

    def _begin(self, variables: Tree, *_: jax.Array) -> Tree:
        same = {"moments": jax.tree.map(jnp.zeros_like, flatten_dict(variables["batch_stats"], sep="/"))}
        if not self._feed:
            same["order"] = self._order()
        return vary(same, (WORKER, DATA)) | {"batch": jax.lax.axis_index((WORKER, DATA))}

    def _step(self, carry: Tree, variables: Tree, images: jax.Array, *_: jax.Array) -> Tree:
        number = carry["batch"]
        batch = images if self._feed else images[carry["order"][jnp.minimum(number, self._batches - 1)]]
        if self._augmentation is not None:
            key = key_for(self._seed, Purpose.NORM_STATISTICS, number)
            batch = self._augmentation.apply(batch, self._augmentation.draw(key, self._batch_size))
        batch = normalise(batch, jnp.asarray(self._mean), jnp.asarray(self._std))
        _, updated = self._model.apply(variables, batch, train=True, mutable=["batch_stats"])
        # The devices may not divide the batches; what is past the last one counts nothing.
        weight = jnp.where(number < self._batches, 1.0 / self._batches, 0.0)
        moments = jax.tree.map(lambda total, m: total + weight * m, carry["moments"], _moments(updated["batch_stats"]))
        return carry | {"moments": moments, "batch": number + self._mesh.size}


class Evaluator:
    """Loss and accuracy on the test set, every example counted once whatever the number of devices."""

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        dataset: AnyDataset,
        mesh: Mesh,
        *,
        fused: bool | None = None,
    ):
        examples = dataset.test_examples
        per_device = math.ceil(examples / mesh.size)
        self._batch = min(config.train.eval_batch_size, per_device)
        steps = math.ceil(per_device / self._batch)
        padding = steps * self._batch * mesh.size - examples
        self._model, self._mesh, self._examples = model, mesh, examples
        self._mean, self._std = dataset.channel_statistics
        self._feed, self._arrays = None, ()
        # A label of -1 marks the padding.
        if dataset.streamed:
            numbers = np.pad(np.arange(examples), (0, padding), constant_values=-1)
            positions = numbers.reshape(mesh.size, steps, self._batch).swapaxes(0, 1)
            self._feed = FixedFeed(dataset, mesh, "test", np.arange(examples), positions)
        else:
            sharding = NamedSharding(mesh, PER_DEVICE)
            images = distribute(np.pad(dataset.test_images, ((0, padding), (0, 0), (0, 0), (0, 0))), sharding)
            self._arrays = images, distribute(np.pad(dataset.test_labels, (0, padding), constant_values=-1), sharding)
        self._loop = DeviceLoop(
            mesh,
            self._begin,
            self._step,
            steps,
            in_specs=(REPLICATED,) if self._feed else (REPLICATED, PER_DEVICE, PER_DEVICE),
            carry_spec=PER_DEVICE,
            feed_specs=FEED_SPECS if self._feed else (),
            fused=fused,
        )
        self._total = jax.jit(lambda carry: jax.tree.map(jnp.sum, carry), out_shardings=NamedSharding(mesh, REPLICATED))

    def __call__(self, variables: Tree) -> dict[str, float]:
        """{"params", "batch_stats"} on the mesh -> {"test/loss": mean cross-entropy, "test/accuracy": in [0, 1]}."""
        with closing(self._feed()) if self._feed else nullcontext() as feed:
            carry = settle(self._loop(variables, *self._arrays, feed=feed), self._mesh)
        total = jax.device_get(self._total(carry))
        return {
            "test/loss": float(total["loss"]) / self._examples,
            "test/accuracy": int(total["correct"]) / self._examples,
        }

    def _begin(self, *_: Any) -> Tree:
        return vary({"step": jnp.int32(0), "loss": jnp.float32(0), "correct": jnp.int32(0)}, (WORKER, DATA))

    def _step(self, carry: Tree, variables: Tree, images: jax.Array, labels: jax.Array) -> Tree:
        if not self._feed:
            start = carry["step"] * self._batch
            images, labels = (jax.lax.dynamic_slice_in_dim(a, start, self._batch) for a in (images, labels))
        batch = normalise(images, jnp.asarray(self._mean), jnp.asarray(self._std))
        logits = self._model.apply(variables, batch, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return {
            "step": carry["step"] + 1,
            "loss": carry["loss"] + jnp.where(labels >= 0, losses, 0).sum(),
            "correct": carry["correct"] + (logits.argmax(axis=-1) == labels).sum(dtype=jnp.int32),
        }


def _moments(batch_stats: Tree) -> Tree:
    """First and second raw moments, flat, under the paths of "mean" and "var"."""
    flat = flatten_dict(batch_stats, sep="/")
    return {p: flat[p] if p.endswith("mean") else flat[p] + flat[_mean_of(p)] ** 2 for p in flat}


def _statistics(moments: Tree) -> Tree:
    """Sum the moments over devices (their leading axis); back to means and variances."""
    total = {path: leaf.sum(axis=0) for path, leaf in moments.items()}
    flat = {p: total[p] if p.endswith("mean") else jnp.maximum(total[p] - total[_mean_of(p)] ** 2, 0) for p in total}
    return unflatten_dict(flat, sep="/")


def _mean_of(var_path: str) -> str:
    return var_path.removesuffix("var") + "mean"
