# SPDX-License-Identifier: Apache-2.0
"""Composition of scores that are known exactly, so that only the composition can err."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from numpyro_amortized.networks.composition import Composed, Prior, Sums, composed_sample

PRIOR_MEAN = jnp.array([0.3, -0.2])
PRIOR = jnp.array([[1.0, 0.3], [0.3, 0.7]])
NOISE = jnp.array([[2.0, -0.6], [-0.6, 1.0]])  # of the observation of one group
NUM_SAMPLES = 4000


def score_of(mean, covariance, level, x):
    """Of ``N(mean, covariance)`` at a level, for means ``(*batch, size)``."""
    noisy = level.data**2 * covariance + level.noise**2 * jnp.eye(2)
    return -jnp.einsum("ij,...j->...i", jnp.linalg.inv(noisy), x - level.data * mean)


def exactly_composed(y, chunk_size):
    precision = jnp.linalg.inv(PRIOR)
    own = precision + jnp.linalg.inv(NOISE)
    covariance = jnp.linalg.inv(own)
    means = (precision @ PRIOR_MEAN + y @ jnp.linalg.inv(NOISE)) @ covariance
    chunks = means.reshape(-1, chunk_size, 2)

    def prior(level, x):
        noisy = precision + (level.data / level.noise) ** 2 * jnp.eye(2)
        score = score_of(PRIOR_MEAN, PRIOR, level, x)
        return Prior(score, score, jnp.broadcast_to(noisy, (*x.shape, 2)))

    def groups(chunk, level, x, prior):
        excess = score_of(chunks[chunk][:, None], covariance, level, x) - prior.center
        weights = own + (level.data / level.noise) ** 2 * jnp.eye(2)
        information = chunk_size * (own - precision)
        pull = jnp.einsum("ij,gsj->si", weights, excess)
        return Sums(pull, jnp.broadcast_to(information, (*x.shape, 2)))

    return Composed(prior, groups, len(chunks))


@pytest.mark.parametrize(
    "num_groups, chunk_size", [pytest.param(1000, 100, marks=pytest.mark.verify), (10, 5)]
)
def test_normal_posteriors_compose_exactly(num_groups, chunk_size):
    y = random.normal(random.key(0), (num_groups, 2)) @ jnp.linalg.cholesky(NOISE).T + 0.5

    @jax.jit
    def draw(rng_key, start):
        composed = exactly_composed(y, chunk_size)
        return composed_sample(rng_key, composed, start, num_levels=30, last=0.1)

    draws = draw(random.key(1), random.normal(random.key(2), (NUM_SAMPLES, 2)))
    precision = np.linalg.inv(PRIOR) + num_groups * np.linalg.inv(NOISE)
    covariance = np.linalg.inv(precision)
    pull = np.linalg.inv(PRIOR) @ PRIOR_MEAN + np.linalg.inv(NOISE) @ np.asarray(y).sum(0)
    whitened = (np.asarray(draws) - covariance @ pull) @ np.linalg.cholesky(precision)
    # four standard errors of a mean, and of a second moment, of independent normal draws
    assert np.abs(whitened.mean(0)).max() < 4 / NUM_SAMPLES**0.5
    assert np.abs(np.cov(whitened.T) - np.eye(2)).max() < 4 * (2 / NUM_SAMPLES) ** 0.5
