# SPDX-License-Identifier: Apache-2.0
"""A posterior with two equal modes, and a network that gives them other weights."""

from typing import final

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx

from numpyro_amortized.networks.base import DensityNetwork

NOISE = 0.2


def squared(x=None):
    """Only the square of a standard normal is seen, so that its sign is not known."""
    theta = numpyro.sample("theta", dist.Normal(0, 1))
    numpyro.sample("x", dist.Normal(theta**2, NOISE), obs=x)


def squared_posterior(x):
    """Mean and standard deviation of ``|theta|``, by numerical integration."""
    grid = np.linspace(0, 4, 40_001)
    density = np.exp(-(grid**2) / 2 - ((grid**2 - x) / NOISE) ** 2 / 2)
    mean = (grid * density).sum() / density.sum()
    return mean, np.sqrt((grid**2 * density).sum() / density.sum() - mean**2)


@final
class TwoNormals(DensityNetwork):
    """Modes at -1 and 1 of given weights, whatever the data are."""

    def __init__(self, size, condition_size, *, scale, weights=(0.8, 0.2), rngs):
        self.size, self.condition_size = size, condition_size
        # variables, so that networks of other modes are the same program
        self.scale, self.weights = (nnx.Variable(jnp.array(x)) for x in (scale, weights))
        self.unused = nnx.Param(jnp.zeros(()))  # training wants something to train

    @property
    def mixture(self):
        weights = dist.Categorical(probs=self.weights[...])
        modes = dist.Normal(jnp.array([-1.0, 1.0]), self.scale[...])
        return dist.MixtureSameFamily(weights, modes)

    def loss(self, rng_key, variables, context):
        return -self.log_prob(variables, context) + self.unused**2

    def log_prob(self, variables, context):
        return self.mixture.log_prob(variables[..., 0])

    def sample(self, rng_key, context):
        return self.mixture.sample(rng_key, context.shape[:-1])[..., None]

    def sample_and_log_prob(self, rng_key, context):
        draws = self.sample(rng_key, context)
        return draws, self.log_prob(draws, context)
