"""The limit of the left side of Theorem 1 at infinite width, in closed form. Derived in docs/results/theory.md.

At infinite width the network is linear in its weights, because activation patterns do not change. A worker's output is
f_s = scale * xi * f + e_s. The noises e_s are independent, with covariance scale^2 xi (1 - xi) H, where H is the
covariance of the outputs over initial weights. Masks then act in three ways: the part of the noise that is the same for
all filters moves f; the part that differs between filters moves W, but not f; and so does the choice of which filters
are trained at all.
"""

from typing import NamedTuple

import numpy as np

from loft_jax.theory.descent import Rates
from loft_jax.theory.network import Kernels


class MaskMoments(NamedTuple):
    """Moments of the masks. N_r is the number of workers s that keep filter r (M_rs = 1).

    Attributes:
      trained: theta, the probability of N_r > 0.
      shared: variance of the noise that is the same for all filters, divided by the variance of e_s.
      own: variance of the noise that differs between filters, divided by the variance of e_s.
    """

    trained: float
    shared: float
    own: float

    @classmethod
    def of(cls, workers: int, xi: float, *, disjoint: bool) -> "MaskMoments":
        """Compute them for filters kept with probability xi, or dealt in equal groups, where the e_s sum to 0."""
        if disjoint:
            return cls(1.0, 0.0, 1.0)
        from scipy.stats import binom

        theta = trained_probability(workers, xi)
        keepers = np.arange(1, workers + 1)
        chances = binom.pmf(keepers, workers, xi)
        return cls(theta, theta**2 / workers, float(np.sum(chances / keepers)) - theta**2 / workers)


def trained_probability(workers: int, xi: float) -> float:
    """Return theta = 1 - (1 - xi)^S, the probability that a filter is trained at all."""
    return 1 - (1 - xi) ** workers


class Limit(NamedTuple):
    """Means over masks, for rounds 0..T: `distance` [T + 1] of the weights, `output_gap` [T + 1] of the outputs."""

    distance: np.ndarray
    output_gap: np.ndarray


def lazy_limit(
    kernels: Kernels, labels: np.ndarray, initial: np.ndarray, rates: Rates, masks: MaskMoments, rounds: int
) -> Limit:
    """Compute the two terms of the left side at infinite width, for one local step.

    The outputs are f_0 + K u_t for LoFT and f_0 + K v_t for gradient descent. u and v are affine in the noise, so it is
    enough to follow the second moments of z = (1, u, v).

    Args:
      kernels: kernels of infinite width, [n, n].
      labels: [n].
      initial: [n], outputs f(X, W_0) of one draw.
      rates: the steps, xi and the scales.
      masks: moments for the same workers and xi.
      rounds: T.
    """
    n, kernel = len(labels), kernels.tangent
    noise = rates.output_scale**2 * rates.xi * (1 - rates.xi) * kernels.outputs
    step = rates.eta * rates.gradient_scale
    # Residuals of LoFT and of gradient descent, and u - v, as linear maps of z.
    offsets = rates.output_scale * rates.xi * initial - labels, initial - labels
    loft = np.hstack([offsets[0][:, None], rates.output_scale * rates.xi * kernel, np.zeros((n, n))])
    descent = np.hstack([offsets[1][:, None], np.zeros((n, n)), kernel])
    difference = np.hstack([np.zeros((n, 1)), np.eye(n), -np.eye(n)])
    advance = np.eye(2 * n + 1)
    advance[1 : n + 1] -= step * masks.trained * loft
    advance[n + 1 :] -= rates.gd_step * descent
    noise_term = np.zeros_like(advance)
    noise_term[1 : n + 1, 1 : n + 1] = step**2 * masks.shared * noise

    moments = np.zeros_like(advance)
    moments[0, 0] = 1
    own, distance, output_gap = 0.0, [], []
    for _ in range(rounds + 1):
        spread = difference @ moments @ difference.T
        distance.append(np.trace(kernel @ spread) + own)
        output_gap.append(np.trace(kernel @ spread @ kernel))
        untrained = masks.trained * (1 - masks.trained) * np.trace(kernel @ loft @ moments @ loft.T)
        own += step**2 * (untrained + masks.own * np.trace(kernel @ noise))
        moments = advance @ moments @ advance.T + noise_term
    return Limit(np.array(distance), np.array(output_gap))
