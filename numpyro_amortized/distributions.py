# SPDX-License-Identifier: Apache-2.0
"""Amortized densities as NumPyro distributions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

if TYPE_CHECKING:
    from numpyro_amortized.approximators.density import DensityApproximator
    from numpyro_amortized.networks.base import DensityNetwork


class Frozen:
    """A density as trained at one time; compared by identity, so that it may be static data."""

    def __init__(self, approximator: "DensityApproximator", density: "DensityNetwork") -> None:
        self.approximator = approximator
        graphdef, state = nnx.split(density)
        # own arrays: training goes on in place
        self._graphdef, self._state = graphdef, jax.tree.map(jnp.copy, state)

    @property
    def inference_network(self) -> "DensityNetwork":
        """The network with the parameters of that time."""
        return nnx.merge(self._graphdef, self._state)


class AmortizedPosterior(dist.Distribution):
    """Posterior over the unconstrained, standardized vector of all inferred latents.

    Made by the ``posterior`` of an approximator. The batch shape is that of the data sets.

    :param context: encoded data sets, shape ``(*batch, condition_size)``.
    :param observed: the data sets, values ``(*batch, *shape)`` of each observed site.
    :param frozen: the trained networks.
    """

    arg_constraints = {"context": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    reparametrized_params = ["context"]  # noqa: RUF012
    pytree_data_fields = ("context", "observed")
    pytree_aux_fields = ("frozen",)

    def __init__(
        self,
        context: Array,
        observed: Mapping[str, Array],
        frozen: Frozen,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.context = context
        self.observed = dict(observed)
        self.frozen = frozen
        size = frozen.approximator.num_variables
        super().__init__(context.shape[:-1], (size,), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape ``(*sample_shape, *batch, size)``."""
        context = jnp.broadcast_to(self.context, (*sample_shape, *self.context.shape))
        return self.frozen.inference_network.sample(key, context)

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Array]]:
        """Draws and their log densities by one pass, which a second one cannot blur by rounding."""
        context = jnp.broadcast_to(self.context, (*sample_shape, *self.context.shape))
        draws, log_prob = self.frozen.inference_network.sample_and_log_prob(key, context)
        return draws, [log_prob]

    @validate_sample
    def log_prob(self, value: Array, intermediates: Sequence[Array] | None = None) -> Array:
        """Log density in the unconstrained space, shape ``(*sample_shape, *batch)``.

        :param value: shape ``(*sample_shape, *batch, size)``.
        :param intermediates: those of the draws.
        """
        if intermediates:
            return intermediates[0]
        return self.frozen.inference_network.log_prob(value, self.context)

    def constrain(self, value: Array) -> dict[str, Array]:
        """Latent and deterministic sites at unconstrained vectors.

        :param value: shape ``(*sample_shape, *batch, size)``.
        :return: values ``(*sample_shape, *batch, *shape)``.
        """
        function = self.frozen.approximator.sites_at
        for _ in self.batch_shape:
            function = jax.vmap(function)
        for _ in range(jnp.ndim(value) - 1 - len(self.batch_shape)):
            function = jax.vmap(function, in_axes=(0, None))
        return function(value, self.observed)

    def sample_sites(self, rng_key: Array, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        """Draws of the latent and deterministic sites, ``(*sample_shape, *batch, *shape)``."""
        return self.constrain(self.sample(rng_key, sample_shape))
