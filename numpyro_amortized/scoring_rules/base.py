# SPDX-License-Identifier: Apache-2.0
"""What a scoring rule is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = ["Estimates", "Heads", "ParametricRule", "ScoringRule", "with_shape"]

Heads = dict[str, tuple[int, ...]]  # name -> shape
Estimates = Mapping[str, Array]  # name -> (*batch, *shape)


class ScoringRule(ABC):
    """A loss of estimates, least in expectation at what is to be estimated [1].

    A network gives ``num_outputs`` real numbers, and :meth:`estimates` makes admissible estimates
    of them, such as quantiles in their order.

    **References**

    1. Gneiting, T. and Raftery, A. E. (2007). Strictly proper scoring rules, prediction, and
       estimation. *Journal of the American Statistical Association*, 102(477), 359-378.
    """

    @abstractmethod
    def heads(self, size: int) -> Heads:
        """Names and shapes of the estimates.

        :param size: number of variables.
        """

    @abstractmethod
    def estimates(self, outputs: Array, size: int) -> dict[str, Array]:
        """Estimates from real numbers.

        :param outputs: shape ``(*batch, num_outputs(size))``.
        :param size: number of variables.
        :return: the heads, each of shape ``(*batch, *shape)``.
        """

    @abstractmethod
    def score(self, estimates: Estimates, variables: Array) -> Array:
        """The loss, the lower the better.

        :param estimates: the heads, each of shape ``(*batch, *shape)``.
        :param variables: what came true, shape ``(*batch, size)``.
        :return: shape ``(*batch,)``.
        """

    def moved(
        self, estimates: Estimates, mean: ArrayLike, scale: ArrayLike, shape: tuple[int, ...]
    ) -> dict[str, Array]:
        """Estimates of ``mean + scale * variable``, in the shape of a site.

        :param estimates: of standardized variables, each of shape ``(*batch, *shape)``.
        :param mean: shape ``(size,)``.
        :param scale: shape ``(size,)``, positive.
        :param shape: of the site.
        """

        def one(name: str, x: Array) -> Array:
            if name == "scale_tril":
                return jnp.asarray(scale)[:, None] * x
            if name in ("log_weights", "probs"):
                return x
            return with_shape(jnp.asarray(mean) + jnp.asarray(scale) * x, shape)

        return {name: one(name, x) for name, x in estimates.items()}

    def num_outputs(self, size: int) -> int:
        """How many real numbers :meth:`estimates` takes."""
        return sum(prod(shape) for shape in self.heads(size).values())


class ParametricRule(ScoringRule):
    """A scoring rule whose estimates are the parameters of a distribution."""

    @abstractmethod
    def log_prob(self, estimates: Estimates, variables: Array) -> Array:
        """Log density, shape ``(*batch,)``, at variables ``(*batch, size)``."""

    @abstractmethod
    def sample(
        self, rng_key: Array, estimates: Estimates, sample_shape: tuple[int, ...] = ()
    ) -> Array:
        """Draws, shape ``(*sample_shape, *batch, size)``."""

    def score(self, estimates: Estimates, variables: Array) -> Array:
        return -self.log_prob(estimates, variables)


def with_shape(outputs: Array, shape: tuple[int, ...]) -> Array:
    """The last axis of the outputs in the shape of an estimate."""
    return outputs.reshape(*outputs.shape[:-1], *shape)
