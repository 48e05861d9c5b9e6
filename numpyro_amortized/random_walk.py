# SPDX-License-Identifier: Apache-2.0
"""A step of random-walk Metropolis whose size is random, so that no tuning is needed."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, random

__all__ = ["random_walk"]


def random_walk(
    rng_key: Array,
    position: Array,
    log_density: Array,
    density: Callable[[Array], Array],
    *,
    smallest_step: float,
    root: Array | None = None,
) -> tuple[Array, Array]:
    """One step; pure and traceable. It leaves the density invariant.

    :param rng_key: a key.
    :param position: where the step begins, shape ``(size,)``.
    :param log_density: the log density there, a scalar.
    :param density: log density of a position, minus infinity where there is none.
    :param smallest_step: steps are log-uniform from it to 1, in units of the step that is optimal
        for a normal distribution with the covariance that ``root`` says.
    :param root: square root ``(size, size)`` of that covariance, by default the identity.
    :return: position and log density after the step.
    """
    size_key, direction_key, accept_key = random.split(rng_key, 3)
    share = random.uniform(size_key)
    scale = smallest_step**share * 2.4 / jnp.sqrt(position.shape[-1])
    direction = random.normal(direction_key, position.shape)
    proposal = position + scale * (direction if root is None else root @ direction)
    proposed = density(proposal)
    accept = jnp.log(random.uniform(accept_key)) < proposed - log_density
    return jnp.where(accept, proposal, position), jnp.where(accept, proposed, log_density)
