# SPDX-License-Identifier: Apache-2.0
"""What approximators that learn of latent sites have in common."""

from collections.abc import Callable, Mapping
from functools import cached_property

import jax
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.approximators.base import Approximator
from numpyro_amortized.approximators.conditions import (
    check_data_names,
    check_latents,
    given_names,
)
from numpyro_amortized.approximators.predictive import ModelPredictive
from numpyro_amortized.datasets import Batch
from numpyro_amortized.simulators.model import ModelSimulator

__all__ = ["LatentApproximator"]


class LatentApproximator(Approximator):
    """An approximator of sites that the adapter maps to ``inference_variables``.

    With :meth:`Adapter.for_likelihood` these are observed sites, and the latents are given.
    """

    @cached_property
    def inferred_sites(self) -> tuple[str, ...]:
        """Names of the sites that come back from inference variables, in trace order."""
        context = {
            name: jax.ShapeDtypeStruct(site.shape, site.dtype)
            for name, site in self.sites.items()
            if site.role == "context"
        }
        variables = {"inference_variables": self._row["inference_variables"]}
        row = jax.eval_shape(self.adapter.inverse, variables | context)
        return tuple(
            name for name, site in self.sites.items() if name in row and site.role == "latent"
        )

    @cached_property
    def predictive(self) -> ModelPredictive | None:
        """The model at values of the inferred latents, ``None`` where there is none to ask."""
        if not isinstance(self.source, ModelSimulator) or self.adapter.observations is not None:
            return None
        return ModelPredictive(self.source, self.inferred_sites)

    def sites_at(self, vector: Array, observed: Mapping[str, Array]) -> Batch:
        """Latent and deterministic sites at one unconstrained vector, shape ``(size,)``."""
        values = self.latents_at(vector, observed)
        latents = {name: values[name] for name in self.inferred_sites}
        if self.predictive is None:
            return latents
        return latents | self.predictive.deterministic(latents, observed)

    @property
    def _target(self) -> str:
        return "inference_variables"

    @property
    def _needed_sites(self) -> tuple[str, ...]:
        return (*self.inferred_sites, *given_names(self.sites))

    @property
    def num_variables(self) -> int:
        """Length of the unconstrained vector of all inferred latents."""
        return self._row["inference_variables"].shape[-1]

    def _at_data(
        self, data: Mapping[str, ArrayLike], function: Callable[[Batch, Batch], Array]
    ) -> Array:
        """A function of latents and conditions at values that the user gives together.

        :param data: values of the inferred latent sites and of the observed sites; latents may
            carry a further axis of samples after that of the data sets.
        :param function: of latents ``(num_conditions, num_samples, *shape)`` and conditions
            ``(num_conditions, *shape)`` to an array ``(num_conditions, num_samples)``.
        :return: its value, without the axes that the user did not give.
        """
        names = self.inferred_sites
        check_data_names(self.sites, names, data, self.varying_size)
        given = given_names(self.sites, self.varying_size)
        checked = self.check_conditions({name: data[name] for name in given})
        latents, has_samples = check_latents(self.sites, names, data, checked)
        result = function(latents, checked.values)
        return checked.unbatch(result if has_samples else result[:, 0])

    def latents_at(self, vector: Array, given: Mapping[str, Array]) -> Batch:
        """Latents at one vector, shape ``(size,)``, for one data set."""
        context = {name: given[name] for name in given if self.sites[name].role == "context"}
        return self.adapter.inverse({"inference_variables": vector, **context})

    def _variables_at(self, latents: Batch, observed: Batch) -> tuple[Array, Array]:
        """Network variables and log-determinants of draws ``(num_conditions, num_samples)``."""

        def one(latents: Batch, given: Batch) -> tuple[Array, Array]:
            data = latents | given
            return self.adapter.forward(data)["inference_variables"], self.adapter.log_det_jac(data)

        return jax.vmap(jax.vmap(one, in_axes=(0, None)))(latents, observed)
