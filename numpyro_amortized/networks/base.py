# SPDX-License-Identifier: Apache-2.0
"""What an inference network is."""

from abc import abstractmethod

from flax import nnx
from jax import Array


class InferenceNetwork(nnx.Module):
    """A conditional generative model of a vector of inference variables.

    Every array may carry any number of leading batch axes; those of ``context`` broadcast
    against those of ``variables``, so that one context serves many draws and is encoded once.
    """

    size: int
    condition_size: int

    @abstractmethod
    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        """Training loss of each event.

        :param rng_key: a key, for networks with a stochastic loss.
        :param variables: events, shape ``(*batch, size)``.
        :param context: conditions, shape ``(*batch, condition_size)``.
        :return: losses, shape ``(*batch,)``.
        """

    @abstractmethod
    def sample(self, rng_key: Array, context: Array) -> Array:
        """One draw for each context.

        :param rng_key: a key.
        :param context: conditions, shape ``(*batch, condition_size)``.
        :return: draws, shape ``(*batch, size)``.
        """


class DensityNetwork(InferenceNetwork):
    """An inference network with a normalized density."""

    @abstractmethod
    def log_prob(self, variables: Array, context: Array) -> Array:
        """Log density of each event, shape ``(*batch,)``."""

    @abstractmethod
    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        """Draws, shape ``(*batch, size)``, and their log densities, shape ``(*batch,)``."""
