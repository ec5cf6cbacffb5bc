"""Stateless randomness: everything random is a pure function of (seed, purpose, round or step); nothing is saved."""

from enum import IntEnum
from typing import Any

import jax


class Purpose(IntEnum):
    """What a stream of random numbers is used for. Results depend on these numbers: never change them."""

    INITIALISATION = 0
    PARTITION = 1
    ORDER = 2
    AUGMENTATION = 3
    NORM_STATISTICS = 4
    REINITIALISATION = 5
    RANDOM_TICKET = 6
    THEOREM = 7
    DROPOUT = 8
    STAGGER = 9


# Named, because the environment may name another one, with other numbers: a run is the same for every user.
IMPLEMENTATION = "threefry2x32"
_WORDS = 2


def key_for(seed: int, purpose: Purpose, *indices: Any) -> jax.Array:
    """Make the PRNG key of a purpose: fold in each index (round, worker, step, ...) in turn; they may be traced."""
    key = jax.random.fold_in(jax.random.key(seed, impl=IMPLEMENTATION), purpose)
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def same_under_vmap(key: jax.Array) -> jax.Array:
    """Return a key whose numbers under `vmap` are those it gives alone, made from a key of any implementation.

    JAX does not promise that of the other ones (rbg, unsafe_rbg). A key of ours is returned as it is.
    """
    return jax.random.wrap_key_data(jax.random.key_data(key)[..., :_WORDS], impl=IMPLEMENTATION)
