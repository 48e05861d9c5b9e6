# SPDX-License-Identifier: Apache-2.0
"""A mixture of two normals around a context, and the network that knows it exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, random
from jax.scipy import stats
from jax.typing import ArrayLike

from numpyro_amortized.networks.continuous_flow import _LEAST_DATA, _LEAST_NOISE, ContinuousFlow

MEANS, SCALES, WEIGHTS = (np.array(x) for x in ([-1.0, 0.8], [0.3, 0.15], [0.4, 0.6]))


def log_density(x: Array, context: Array, data: ArrayLike = 1.0, noise: ArrayLike = 0.0) -> Array:
    """Of ``data * variable + noise * normal``, shape ``(*batch,)`` for ``x`` ``(*batch, 1)``."""
    scales = jnp.sqrt((data * SCALES) ** 2 + noise**2)
    terms = stats.norm.logpdf(x, data * (MEANS + context), scales)
    return jax.nn.logsumexp(terms + np.log(WEIGHTS), axis=-1)


def draw(rng_key: Array, context: Array) -> Array:
    """Variables, shape ``(*batch, 1)``, for contexts ``(*batch, 1)``."""
    which_key, normal_key = random.split(rng_key)
    which = random.bernoulli(which_key, WEIGHTS[1], context.shape).astype(int)
    normal = random.normal(normal_key, context.shape)
    return context + jnp.asarray(MEANS)[which] + jnp.asarray(SCALES)[which] * normal


class ExactNetwork(nnx.Module):
    """Predicts what a network that is trained without end would."""

    def condition(self, context: Array) -> Array:
        return context

    def __call__(self, x: Array, level: Array, context: Array) -> Array:
        ratio = jnp.exp(2 * level)[..., None]
        variance = (ratio * (1 + _LEAST_DATA**2) - _LEAST_NOISE**2) / (1 + ratio)
        variance = jnp.clip(variance, 0, 1)
        data, noise = jnp.sqrt(1 - variance), jnp.sqrt(variance)
        # of each component: its share at x, and the expected variable and noise
        spread, center = data**2 * SCALES**2 + variance, data * (MEANS + context)
        share = jax.nn.softmax(stats.norm.logpdf(x, center, jnp.sqrt(spread)) + np.log(WEIGHTS))
        variable = MEANS + context + data * SCALES**2 / spread * (x - center)
        expected_noise = noise * (x - center) / spread
        return (share * (data * expected_noise - noise * variable)).sum(-1, keepdims=True)


def exact(flow: ContinuousFlow) -> ContinuousFlow:
    """The flow with the exact network in the place of its own."""
    flow.network = ExactNetwork()
    return flow
