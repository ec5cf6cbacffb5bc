"""LoFT and gradient descent from the same start, as in Theorem 1, and the distance between them.

A worker s of LoFT keeps filter r where M_rs is 1, computes f_s = scale * sum_r M_rs part_r, and takes steps on its own
squared loss. A kept filter takes the mean update of the workers that keep it. Every round draws new masks.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from loft_jax.theory.network import empirical_kernel, hidden, pull_back


@dataclass(frozen=True)
class Shape:
    """The static part of a comparison; everything else can change without compiling again.

    Attributes:
      filters: m.
      workers: S.
      rounds: T.
      local_steps: steps of a worker in a round.
      mask_seeds: runs of LoFT from the same start, over which the mean over masks is taken.
      disjoint: whether filters are dealt in equal groups (sizes differ by at most one); otherwise kept at random.
      sign_per_filter: whether a filter has one sign for all pixels.
    """

    filters: int
    workers: int
    rounds: int
    local_steps: int
    mask_seeds: int
    disjoint: bool
    sign_per_filter: bool


class Rates(NamedTuple):
    """The numbers of a comparison; all may be traced.

    Attributes:
      kappa: standard deviation of the initial weights.
      xi: probability that a worker keeps a filter (for disjoint groups: share of the filters in a group).
      eta: step of a worker.
      gd_step: step of gradient descent.
      output_scale: factor of a worker's output.
      gradient_scale: factor of a worker's gradient.
    """

    kappa: float
    xi: float
    eta: float
    gd_step: float
    output_scale: float
    gradient_scale: float


class Comparison(NamedTuple):
    """Results for one draw of initial weights. A time axis [T + 1] has rounds 0..T, each before its local steps.

    Attributes:
      distance: [seeds, T + 1], ||W_t - W^_t||_F^2.
      output_gap: [seeds, T + 1], ||f(X, W_t) - f(X, W^_t)||^2.
      changed: [seeds, T + 1], share of (sample, pixel, filter) whose activation differs from that at W_0.
      initial: [n], f(X, W_0).
      gd_loss: [T + 1], 1/2 ||f(X, W^_t) - y||^2.
      smallest: the smallest eigenvalue of the empirical kernel at W_0.
    """

    distance: jax.Array
    output_gap: jax.Array
    changed: jax.Array
    initial: jax.Array
    gd_loss: jax.Array
    smallest: jax.Array


class Task(NamedTuple):
    """What training does not change: patches [n, p, k], labels [n], and signs [p or 1, m]."""

    patches: jax.Array
    labels: jax.Array
    signs: jax.Array


@partial(jax.jit, static_argnames="shape")
def compare(shape: Shape, key: jax.Array, patches: jax.Array, labels: jax.Array, rates: Rates) -> Comparison:
    """Train from one draw of initial weights, by gradient descent once and by LoFT for every mask seed.

    Args:
      shape: the static part.
      key: key of the draw, for initial weights, signs and masks.
      patches: [n, p, k].
      labels: [n].
      rates: the steps, the density of the masks, the scales.
    """
    weight_key, sign_key, mask_key = jax.random.split(key, 3)
    pixels, size = patches.shape[1:]
    start = rates.kappa * jax.random.normal(weight_key, (size, shape.filters), patches.dtype)
    signs = jax.random.rademacher(sign_key, (1 if shape.sign_per_filter else pixels, shape.filters), patches.dtype)
    task = Task(patches, labels, signs)
    path, outputs = gradient_descent(task, start, rates.gd_step, shape.rounds, shape.local_steps)
    initially_active = hidden(patches, signs, start).active

    def one_seed(key: jax.Array) -> tuple[jax.Array, ...]:
        def one_round(weights: jax.Array, t: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            layer = hidden(patches, signs, weights)
            measured = (
                jnp.sum((weights - path[t]) ** 2),
                jnp.sum((layer.parts.sum(axis=1) - outputs[t]) ** 2),
                jnp.mean(layer.active != initially_active),
            )
            masks = draw_masks(shape, jax.random.fold_in(key, t), rates.xi).astype(weights.dtype)
            return loft_round(task, weights, masks, rates, shape.local_steps), measured

        return lax.scan(one_round, start, jnp.arange(shape.rounds + 1))[1]

    # Not vmap: its arrays of all seeds at once do not fit in the processor's cache.
    distance, gap, changed = lax.map(one_seed, jax.random.split(mask_key, shape.mask_seeds))
    loss = jnp.sum((outputs - labels) ** 2, axis=1) / 2
    smallest = jnp.linalg.eigvalsh(empirical_kernel(patches, signs, start))[0]
    return Comparison(distance, gap, changed, outputs[0], loss, smallest)


def gradient_descent(
    task: Task, start: jax.Array, step: float, rounds: int, steps_per_round: int
) -> tuple[jax.Array, jax.Array]:
    """Run full-batch gradient descent on 1/2 ||f - y||^2.

    Returns:
      The weights [T + 1, k, m] and outputs [T + 1, n] before each round, and after the last.
    """

    def one_step(_: int, weights: jax.Array) -> jax.Array:
        layer = hidden(task.patches, task.signs, weights)
        residuals = (layer.parts.sum(axis=1) - task.labels)[:, None]
        return weights - step * pull_back(task.patches, task.signs, layer.active, residuals)

    def one_round(weights: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        outputs = hidden(task.patches, task.signs, weights).parts.sum(axis=1)
        return lax.fori_loop(0, steps_per_round, one_step, weights), (weights, outputs)

    return lax.scan(one_round, start, length=rounds + 1)[1]


def draw_masks(shape: Shape, key: jax.Array, xi: float) -> jax.Array:
    """Draw which worker keeps which filter in a round: [S, m] bool, independent, or dealt in equal groups."""
    if shape.disjoint:
        owner = jax.random.permutation(key, shape.filters) % shape.workers
        return owner == jnp.arange(shape.workers)[:, None]
    # Draws in float32 cost half of those in float64; the probability differs from xi by at most 1e-7.
    return jax.random.uniform(key, (shape.workers, shape.filters), jnp.float32) < xi


def loft_round(task: Task, weights: jax.Array, masks: jax.Array, rates: Rates, local_steps: int) -> jax.Array:
    """Return the weights [k, m] after one round of LoFT with these masks [S, m], 1 or 0."""
    shares = masks / jnp.maximum(masks.sum(axis=0), 1)
    if local_steps == 1:
        # All workers have the same weights, so one hidden layer and one pull-back are enough for all.
        layer = hidden(task.patches, task.signs, weights)
        residuals = rates.output_scale * layer.parts @ masks.T - task.labels[:, None]
        update = pull_back(task.patches, task.signs, layer.active, residuals @ shares)
        return weights - rates.eta * rates.gradient_scale * update
    return weights + separate_updates(task, weights, masks, shares, rates, local_steps)


def separate_updates(
    task: Task, weights: jax.Array, masks: jax.Array, shares: jax.Array, rates: Rates, local_steps: int
) -> jax.Array:
    """Return the mean update [k, m] of workers that train separately, `local_steps` steps each from `weights`."""

    def one_worker(total: jax.Array, mask_and_share: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        mask, share = mask_and_share

        def one_step(_: int, own: jax.Array) -> jax.Array:
            layer = hidden(task.patches, task.signs, own)
            residual = rates.output_scale * layer.parts @ mask - task.labels
            # Filters that the worker does not keep move too, without effect: their mask and share are 0.
            gradient = pull_back(task.patches, task.signs, layer.active, residual[:, None])
            return own - rates.eta * rates.gradient_scale * gradient

        return total + share * (lax.fori_loop(0, local_steps, one_step, weights) - weights), None

    return lax.scan(one_worker, jnp.zeros_like(weights), (masks, shares))[0]
