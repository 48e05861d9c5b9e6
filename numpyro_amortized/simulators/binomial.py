# SPDX-License-Identifier: Apache-2.0
"""Binomial draws whose loops end also when they are vectorized.

NumPyro's sampler computes in the condition of its loop whether a proposal is accepted. Vectorized,
JAX evaluates a condition twice: over the batch, whether to go on, and in the body, which members
to leave alone. XLA may round the two differently, and where a proposal is accepted by less than
that, once in some million draws, the loop never ends. JAX's own sampler keeps in its state what was
accepted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax.numpy as jnp
from jax import Array, random
from jax.typing import ArrayLike
from numpyro.distributions import discrete

from numpyro_amortized.simulators.exclusive import ONE_AT_A_TIME

__all__ = ["binomial", "terminating_binomials"]


def binomial(key: Array, p: ArrayLike, n: ArrayLike = 1, shape: tuple[int, ...] = ()) -> Array:
    """Draws with the arguments and the conventions of NumPyro's function.

    :param key: a key.
    :param p: probabilities; where they are not finite, the draw is 0.
    :param n: numbers of trials; where they are negative, the draw is 0.
    :param shape: of the draws, by default that of ``p`` and ``n`` together.
    :return: integers of the type of ``n``.
    """
    p, n = jnp.asarray(p), jnp.asarray(n)
    shape = shape or jnp.broadcast_shapes(p.shape, n.shape)
    p, trials = jnp.where(jnp.isfinite(p), jnp.clip(p, 0, 1), 0), jnp.maximum(n, 0)
    return random.binomial(key, trials, p, shape).astype(n.dtype)


@contextmanager
def terminating_binomials() -> Iterator[None]:
    """NumPyro's distributions draw by :func:`binomial`, wherever they stand in a model."""
    with ONE_AT_A_TIME:
        before = discrete.binomial
        discrete.binomial = binomial
        try:
            yield
        finally:
            discrete.binomial = before
