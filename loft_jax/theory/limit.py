"""What the left side of Theorem 1 tends to at infinite width: the floor, in closed form. Derived in docs/theory.md.

There the network is linear in its weights (activation patterns stay), and masks act in three ways. A worker's output is
f_s = scale * xi * f + e_s, with e_s independent, of covariance scale^2 xi (1 - xi) H, where H is that of the outputs
over initial weights. What all filters see alike of these e_s moves f. What each filter sees for itself moves W and
leaves f, and so does whether a filter was trained at all.
"""

from typing import NamedTuple

import numpy as np

from loft_jax.theory.descent import Rates
from loft_jax.theory.network import Kernels


class MaskMoments(NamedTuple):
    """What masks contribute. With N_r keepers of filter r, of whom worker s is one where M_rs = 1:

    Attributes:
      trained: theta, the probability of N_r > 0.
      shared: variance of the noise that all filters see alike, over that of e_s.
      own: variance of the noise that each filter sees for itself, over that of e_s.
    """

    trained: float
    shared: float
    own: float

    @classmethod
    def of(cls, workers: int, xi: float, *, disjoint: bool) -> "MaskMoments":
        """Of masks kept with probability xi, or of equal groups, whose e_s add up to nothing."""
        if disjoint:
            return cls(1.0, 0.0, 1.0)
        theta = trained_probability(workers, xi)
        keepers = np.arange(1, workers + 1)
        chances = binomial(workers, xi)[1:]
        return cls(theta, theta**2 / workers, float(np.sum(chances / keepers)) - theta**2 / workers)


def trained_probability(workers: int, xi: float) -> float:
    """theta = 1 - (1 - xi)^S, the probability that a filter is trained at all."""
    return 1 - (1 - xi) ** workers


def binomial(count: int, chance: float) -> np.ndarray:
    """Probabilities [count + 1] of 0..count successes."""
    probabilities = np.ones(1)
    for _ in range(count):
        probabilities = np.convolve(probabilities, [1 - chance, chance])
    return probabilities


class Limit(NamedTuple):
    """Means over masks, for rounds 0..T: `distance` [T + 1] of the weights, `output_gap` [T + 1] of the outputs."""

    distance: np.ndarray
    output_gap: np.ndarray


def lazy_limit(
    kernels: Kernels, labels: np.ndarray, initial: np.ndarray, rates: Rates, masks: MaskMoments, rounds: int
) -> Limit:
    """The two terms of the left side at infinite width, for one local step, from outputs `initial` [n] at W_0.

    LoFT's outputs are f_0 + K u_t and gradient descent's f_0 + K v_t. u and v are affine in the noise, so the second
    moments of z = (1, u, v) are all that is followed.

    Args:
      kernels: of infinite width, [n, n].
      labels: [n].
      initial: [n], f(X, W_0) of one draw.
      rates: the steps, xi and the scales.
      masks: of the same workers and xi.
      rounds: T.
    """
    n, kernel = len(labels), kernels.tangent
    noise = rates.output_scale**2 * rates.xi * (1 - rates.xi) * kernels.outputs
    step = rates.eta * rates.gradient_scale
    # Residuals of LoFT and of gradient descent as linear maps of z.
    offsets = rates.output_scale * rates.xi * initial - labels, initial - labels
    loft = np.hstack([offsets[0][:, None], rates.output_scale * rates.xi * kernel, np.zeros((n, n))])
    descent = np.hstack([offsets[1][:, None], np.zeros((n, n)), kernel])
    apart = np.hstack([np.zeros((n, 1)), np.eye(n), -np.eye(n)])
    advance = np.eye(2 * n + 1)
    advance[1 : n + 1] -= step * masks.trained * loft
    advance[n + 1 :] -= rates.gd_step * descent
    jolt = np.zeros_like(advance)
    jolt[1 : n + 1, 1 : n + 1] = step**2 * masks.shared * noise

    moments = np.zeros_like(advance)
    moments[0, 0] = 1
    own, distance, output_gap = 0.0, [], []
    for _ in range(rounds + 1):
        difference = apart @ moments @ apart.T
        distance.append(np.trace(kernel @ difference) + own)
        output_gap.append(np.trace(kernel @ difference @ kernel))
        untrained = masks.trained * (1 - masks.trained) * np.trace(kernel @ loft @ moments @ loft.T)
        own += step**2 * (untrained + masks.own * np.trace(kernel @ noise))
        moments = advance @ moments @ advance.T + jolt
    return Limit(np.array(distance), np.array(output_gap))
