# SPDX-License-Identifier: Apache-2.0
"""Moves of draws given many groups, where the model's density of a group is known.

Composed draws have the errors of the networks that are composed. Metropolis moves leave the exact
posterior given all groups invariant, and carry draws that are near it the rest of the way [1].

**References**

1. *Sequential Monte Carlo samplers*, Del Moral, Doucet and Jasra (2006).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from numpyro_amortized.approximators.vector_density import VectorDensity
from numpyro_amortized.datasets import Batch

__all__ = ["group_density", "moved"]

_SMALLEST_STEP = 0.03  # of the random walk that is optimal where draws are right and normal


def group_density(density: VectorDensity, groups: Batch) -> Callable[[Array], Array]:
    """Log density of vectors ``(num_samples, size)`` given all groups, up to a constant.

    Groups are gone through one by one, so that memory does not grow with their number.

    :param density: joint one of the latents and a single group.
    :param groups: values ``(num_groups, *shape)``.
    """
    first = jax.tree.map(lambda x: x[0], groups)

    def prior(vector: Array) -> Array:
        return density(vector, first, first) - density.log_likelihood(vector, first, first)

    def log_density(vectors: Array) -> Array:
        def add(total: Array, group: Batch) -> tuple[Array, None]:
            each = jax.vmap(density.log_likelihood, in_axes=(0, None, None))
            return total + each(vectors, group, group), None

        total = lax.scan(add, jax.vmap(prior)(vectors), groups)[0]
        return jnp.where(jnp.isnan(total), -jnp.inf, total)

    return log_density


def moved(
    rng_key: Array, log_density: Callable[[Array], Array], draws: Array, num_moves: int
) -> Array:
    """Random-walk Metropolis moves of each draw, in the directions in which the draws lie.

    Steps are of random size, log-uniform, since the draws may lie wider than the posterior.

    :param rng_key: a key.
    :param log_density: of draws, shape ``(num_samples,)``.
    :param draws: shape ``(num_samples, size)``, more than one.
    """
    size = draws.shape[-1]
    covariance = jnp.atleast_2d(jnp.cov(draws, rowvar=False))
    values, vectors = jnp.linalg.eigh(covariance)
    root = 2.4 / size**0.5 * vectors * jnp.sqrt(jnp.maximum(values, 0))

    def move(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
        draws, before = state
        size_key, direction_key, accept_key = random.split(key, 3)
        step = _SMALLEST_STEP ** random.uniform(size_key, (len(draws), 1), draws.dtype)
        proposed = draws + step * random.normal(direction_key, draws.shape, draws.dtype) @ root.T
        after = log_density(proposed)
        accept = jnp.log(random.uniform(accept_key, before.shape, before.dtype)) < after - before
        draws = jnp.where(accept[:, None], proposed, draws)
        return (draws, jnp.where(accept, after, before)), None

    start = draws, log_density(draws)
    return lax.scan(move, start, random.split(rng_key, num_moves))[0][0]
