# SPDX-License-Identifier: Apache-2.0
"""Densities of a parametric family."""

from collections.abc import Callable
from typing import final

from flax import nnx
from jax import Array

from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.mlp import MLP
from numpyro_amortized.scoring_rules.base import ParametricRule


@final
class Parametric(DensityNetwork):
    """A distribution whose parameters are a perceptron's function of the context.

    :param size: number of inference variables.
    :param condition_size: length of the context.
    :param rule: the family, and the loss.
    :param subnet: class or partial of one (``size``, ``out_size`` and ``rngs`` are supplied).
    :param rngs: random streams of the initial parameters.

    **Example**

    >>> from numpyro_amortized.scoring_rules import MultivariateNormal
    >>> network = Parametric(2, 3, rule=MultivariateNormal(), rngs=nnx.Rngs(0))
    >>> network.sample(random.key(0), jnp.zeros((5, 3))).shape
    (5, 2)
    """

    def __init__(
        self,
        size: int,
        condition_size: int,
        *,
        rule: ParametricRule,
        subnet: Callable[..., nnx.Module] = MLP,
        rngs: nnx.Rngs,
    ) -> None:
        self.size = size
        self.condition_size = condition_size
        self.rule = nnx.static(rule)
        self.subnet = subnet(size=condition_size, out_size=rule.num_outputs(size), rngs=rngs)

    def estimates(self, context: Array) -> dict[str, Array]:
        """Parameters of the distributions, each of shape ``(*batch, *shape)``."""
        return self.rule.estimates(self.subnet(context), self.size)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        return self.rule.score(self.estimates(context), variables)

    def sample(self, rng_key: Array, context: Array) -> Array:
        return self.rule.sample(rng_key, self.estimates(context))

    def log_prob(self, variables: Array, context: Array) -> Array:
        return self.rule.log_prob(self.estimates(context), variables)

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        estimates = self.estimates(context)
        draws = self.rule.sample(rng_key, estimates)
        return draws, self.rule.log_prob(estimates, draws)
