"""The network of Theorem 1, its gradient in closed form, and its kernels, empirical and of infinite width.

    f(x) = m^-1/2 sum_{j,r} a_jr relu(<phi_j(x), w_r>)

One hidden convolutional layer of m filters w_r, over p patches phi_j of size k = d * q; the signs a_jr are fixed.
Filters are the last axis of every array, so that sums over filters are products of matrices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Hidden(NamedTuple):
    """The hidden layer at all samples.

    Attributes:
      active: [n, p, m] bool, the activation pattern: where <phi_j, w_r> is positive.
      parts: [n, m], what each filter adds to the output; their sum over filters is f.
    """

    active: jax.Array
    parts: jax.Array


def hidden(patches: jax.Array, signs: jax.Array, weights: jax.Array) -> Hidden:
    """Run the hidden layer.

    Args:
      patches: [n, p, k].
      signs: [p, m], or [1, m] for one sign per filter; 1 or -1.
      weights: [k, m].
    """
    samples, pixels, size = patches.shape
    inner = (patches.reshape(samples * pixels, size) @ weights).reshape(samples, pixels, -1)
    signs = jnp.broadcast_to(signs, inner.shape[1:])
    # Written out, because XLA's sum over a middle axis takes four times as long as the rest of a step on CPU.
    parts = sum(signs[j] * jnp.maximum(inner[:, j], 0) for j in range(pixels))
    return Hidden(inner > 0, parts / np.sqrt(weights.shape[1]))


def pull_back(patches: jax.Array, signs: jax.Array, active: jax.Array, residuals: jax.Array) -> jax.Array:
    """Sum residual times gradient of a filter's part over the samples: the gradient of any loss has this form.

    With residuals f - y for every filter, it is the gradient of 1/2 ||f - y||^2.

    Args:
      patches, signs: as for `hidden`.
      active: [n, p, m] bool, from `hidden`.
      residuals: [n, m], or [n, 1] if they are the same for every filter.

    Returns:
      [k, m]; column r is m^-1/2 sum_{i,j} residuals_ir a_jr 1{active} phi_j(x_i).
    """
    samples, pixels, size = patches.shape
    slopes = jnp.where(active, signs, 0) * residuals[:, None, :]
    flat = slopes.reshape(samples * pixels, -1)
    return patches.reshape(samples * pixels, size).T @ flat / np.sqrt(active.shape[-1])


@jax.jit
def empirical_kernel(patches: jax.Array, signs: jax.Array, weights: jax.Array) -> jax.Array:
    """Compute the tangent kernel [n, n] of the network: inner products of its gradients. Arguments as for `hidden`."""
    samples, pixels, size = patches.shape
    active = hidden(patches, signs, weights).active
    slopes = jnp.where(active, signs, 0.0).reshape(samples * pixels, -1)
    flat = patches.reshape(samples * pixels, size)
    # For pairs of patches, because gradients of all samples and filters at once would need far more memory.
    pairs = (slopes @ slopes.T) * (flat @ flat.T) / weights.shape[1]
    return pairs.reshape(samples, pixels, samples, pixels).sum(axis=(1, 3))


class Kernels(NamedTuple):
    """Kernels of infinite width, [n, n] float64.

    Attributes:
      tangent: K, the mean of `empirical_kernel`; its smallest eigenvalue is the theorem's lambda_0.
      outputs: the covariance of f over initial weights, which is m times that of a filter's part.
    """

    tangent: np.ndarray
    outputs: np.ndarray

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues of `tangent`, ascending: [n]."""
        return np.linalg.eigvalsh(self.tangent)


def infinite_kernels(patches: np.ndarray, kappa: float, *, sign_per_filter: bool = False) -> Kernels:
    """Compute the kernels of infinite width in closed form (arc-cosine kernels, Cho and Saul 2009).

    For two patches with an angle gamma between them, rho = cos gamma, and w ~ N(0, kappa^2 I):

        E 1{<phi, w> > 0} 1{<phi', w> > 0} = (pi - gamma) / (2 pi)
        E relu(<phi, w>) relu(<phi', w>) = kappa^2 |phi| |phi'| (sin gamma + (pi - gamma) rho) / (2 pi)

    With a sign per pixel only pairs of the same pixel remain in the mean; with a sign per filter all pairs do.

    Args:
      patches: [n, p, k] float64.
      kappa: standard deviation of the initial weights.
      sign_per_filter: whether a filter has one sign for all pixels.
    """
    pairs = "ijk,lhk->ijlh" if sign_per_filter else "ijk,ljk->ijl"
    norms = np.linalg.norm(patches, axis=-1)[..., None]
    inner, sizes = (np.einsum(pairs, x, x) for x in (patches, norms))
    # A patch of zeros adds nothing, whatever its angle.
    cosine = np.clip(np.divide(inner, sizes, out=np.zeros_like(inner), where=sizes > 0), -1, 1)
    angle = np.arccos(cosine)
    tangent = inner * (np.pi - angle) / (2 * np.pi)
    outputs = kappa**2 * sizes * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi)
    pixels = (1, 3) if sign_per_filter else (1,)
    return Kernels(tangent.sum(axis=pixels), outputs.sum(axis=pixels))
