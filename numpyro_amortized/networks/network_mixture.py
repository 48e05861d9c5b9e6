# SPDX-License-Identifier: Apache-2.0
"""Several networks as one density."""

from collections.abc import Sequence
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, random

from numpyro_amortized.networks.base import DensityNetwork


@final
class NetworkMixture(DensityNetwork):
    """The mixture of the densities of networks in equal shares.

    Its context is that of the networks in turn, of ``condition_size`` numbers each.

    :param networks: densities of the same variables.
    """

    def __init__(self, networks: Sequence[DensityNetwork]) -> None:
        self.size = networks[0].size
        self.condition_size = sum(network.condition_size for network in networks)
        self.networks = nnx.List(networks)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        return -self.log_prob(variables, context)

    def log_prob(self, variables: Array, context: Array) -> Array:
        pairs = zip(self.networks, self._contexts(context), strict=True)
        log_probs = [network.log_prob(variables, own) for network, own in pairs]
        return jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - np.log(len(log_probs))

    def sample(self, rng_key: Array, context: Array) -> Array:
        choice_key, *keys = random.split(rng_key, 1 + len(self.networks))
        pairs = zip(self.networks, keys, self._contexts(context), strict=True)
        draws = jnp.stack([network.sample(key, own) for network, key, own in pairs])
        chosen = random.randint(choice_key, context.shape[:-1], 0, len(keys))
        return jnp.take_along_axis(draws, chosen[None, ..., None], axis=0)[0]

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        draws = self.sample(rng_key, context)
        return draws, self.log_prob(draws, context)

    def _contexts(self, context: Array) -> list[Array]:
        ends = np.cumsum([network.condition_size for network in self.networks])[:-1]
        return jnp.split(context, ends.tolist(), axis=-1)
