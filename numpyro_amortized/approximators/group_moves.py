# SPDX-License-Identifier: Apache-2.0
"""Moves of draws given many groups, where the model's density of a group is known.

Composed draws have the errors of the networks that are composed. Metropolis moves leave the exact
posterior given all groups invariant, and carry draws that are near it the rest of the way [1].

**References**

1. *Sequential Monte Carlo samplers*, Del Moral, Doucet and Jasra (2006).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from numpyro_amortized.approximators.vector_density import VectorDensity
from numpyro_amortized.datasets import Batch
from numpyro_amortized.random_walk import random_walk

__all__ = ["group_density", "moved"]

_SMALLEST_STEP = 0.03  # of the random walk that is optimal where draws are right and normal


def group_density(density: VectorDensity, groups: Batch) -> Callable[[Array], Array]:
    """Log density of a vector ``(size,)`` given all groups, up to a constant.

    Groups are gone through one by one, so that memory does not grow with their number.

    :param density: joint one of the latents and a single group.
    :param groups: values ``(num_groups, *shape)``.
    """
    first = jax.tree.map(lambda x: x[0], groups)

    def log_density(vector: Array) -> Array:
        def add(total: Array, group: Batch) -> tuple[Array, None]:
            return total + density.log_likelihood(vector, group, group), None

        total = lax.scan(add, density.log_prior(vector, first, first), groups)[0]
        return jnp.where(jnp.isnan(total), -jnp.inf, total)

    return log_density


def moved(
    rng_key: Array, log_density: Callable[[Array], Array], draws: Array, num_moves: int
) -> Array:
    """Random-walk Metropolis moves of each draw, in the directions in which the draws lie.

    Steps are of random size, since the draws may lie wider than the posterior.

    :param rng_key: a key.
    :param log_density: of one draw.
    :param draws: shape ``(num_samples, size)``, more than one.
    """
    covariance = jnp.atleast_2d(jnp.cov(draws, rowvar=False))
    values, vectors = jnp.linalg.eigh(covariance)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))
    walk = partial(random_walk, density=log_density, smallest_step=_SMALLEST_STEP, root=root)

    def move(state: tuple[Array, Array], keys: Array) -> tuple[tuple[Array, Array], None]:
        return jax.vmap(walk)(keys, *state), None

    start = draws, jax.vmap(log_density)(draws)
    return lax.scan(move, start, random.split(rng_key, (num_moves, len(draws))))[0][0]
