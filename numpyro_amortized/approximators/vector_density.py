# SPDX-License-Identifier: Apache-2.0
"""The model's joint density where the networks see it: at unconstrained, standardized vectors."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortized.approximators.predictive import ModelPredictive

if TYPE_CHECKING:
    from numpyro_amortized.approximators.density import DensityApproximator

__all__ = ["VectorDensity"]

Values = Mapping[str, Array]


class VectorDensity:
    """``log p(vector, data)``, the change of volume included, and the programs that need it.

    :param approximator: of a model's posterior.
    :param predictive: the model of the data's size.
    :raises ValueError: where the density is not known, with the site and the reason.
    """

    def __init__(self, approximator: "DensityApproximator", predictive: ModelPredictive) -> None:
        self.approximator, self.predictive = approximator, predictive
        self.joint = predictive.joint
        self._programs: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __call__(self, vector: Array, observed: Values, given: Values) -> Array:
        """Log joint density in the networks' space, a scalar; pure and traceable.

        :param vector: shape ``(size,)``.
        :param observed: one data set as the networks see it, padded where the size varies.
        :param given: the same, of its own size.
        """
        latents = self._latents(vector, observed)
        log_det = self.approximator.adapter.log_det_jac({**latents, **observed})
        log_density = self.joint(latents, given) - log_det
        return jnp.where(jnp.isnan(log_density), -jnp.inf, log_density)

    def log_likelihood(self, vector: Array, observed: Values, given: Values) -> Array:
        """Log density of the data given the latents, a scalar, where the prior has a density."""
        latents = self._latents(vector, observed)
        return self.joint(latents, given) - self._log_prior(latents, given)

    def log_prior(self, vector: Array, observed: Values, given: Values) -> Array:
        """Log prior density in the networks' space, a scalar, where there is one."""
        latents = self._latents(vector, observed)
        log_det = self.approximator.adapter.log_det_jac({**latents, **observed})
        return self._log_prior(latents, given) - log_det

    def _log_prior(self, latents: Values, given: Values) -> Array:
        priors = self.predictive.log_prior(latents, given).values()
        return sum((jnp.sum(x) for x in priors), jnp.zeros(()))

    def _latents(self, vector: Array, observed: Values) -> dict[str, Array]:
        sites = self.approximator.sites_at(vector, observed)
        return {name: sites[name] for name in self.approximator.inferred_sites}

    def program(
        self, function: Callable[..., Any], *, static: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """A function whose first argument is this density, compiled once for each of its shapes.

        :param function: defined at the top of a module.
        :param static: places of further arguments that are no arrays, counted without the first.
        """
        if function not in self._programs:
            self._programs[function] = jax.jit(partial(function, self), static_argnums=static)
        return self._programs[function]
