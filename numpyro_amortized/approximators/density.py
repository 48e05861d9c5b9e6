# SPDX-License-Identifier: Apache-2.0
"""What approximators with a density of the latents have in common."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.approximators.conditions import (
    check_num_samples,
    given_names,
    in_batches,
    map_in_chunks,
)
from numpyro_amortized.approximators.latent import LatentApproximator
from numpyro_amortized.approximators.predictive import ModelPredictive
from numpyro_amortized.approximators.vector_density import VectorDensity
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.simulators.base import typed_key

if TYPE_CHECKING:
    import xarray

    from numpyro_amortized.distributions import AmortizedPosterior

__all__ = ["DensityApproximator", "SingleDensityApproximator", "rows_in_cache", "with_density"]


class DensityApproximator(LatentApproximator):
    """An approximator with a density of the inference variables given what is conditioned on."""

    @abstractmethod
    def density(self, modules: nnx.Dict) -> DensityNetwork:
        """The density of the inference variables, given what :meth:`encode` makes of conditions.

        :param modules: the networks.
        :raises ValueError: where there is none, with the reason.
        """

    @abstractmethod
    def for_groups(
        self, conditions: Mapping[str, ArrayLike], *, any_sizes: bool = False, warn: bool = True
    ) -> Self:
        """This approximator for the number of groups in some data; itself where that is its own.

        :param conditions: values of the observed sites.
        :param any_sizes: whether data sets may be of several sizes, padded to the greatest.
        :param warn: whether to warn of a number beyond that of the training.
        :raises ValueError: where the model cannot have another number of groups.
        """

    def sample_and_log_prob(
        self,
        rng_key: Array,
        num_samples: int,
        conditions: Mapping[str, ArrayLike],
        *,
        batch_size: int | None = None,
    ) -> tuple[dict[str, Array], Array]:
        """The draws of :meth:`sample` and, from the same pass, their log posterior densities.

        :return: values of shape ``(num_conditions, num_samples, *shape)`` and log densities in the
            sites' own space, ``(num_conditions, num_samples)``.
        """
        num_samples = check_num_samples(num_samples)
        own = self.for_groups(conditions)
        graphdef, state = nnx.split(self._trained())
        checked = own.check_conditions(conditions)
        keys = random.split(typed_key(rng_key), checked.num_datasets)
        draw = partial(own._sample_and_log_prob, graphdef, state, num_samples)
        return checked.unbatch(in_batches(draw, (keys, checked.values), batch_size))

    def posterior(self, conditions: Mapping[str, ArrayLike]) -> "AmortizedPosterior":
        """The posterior as a NumPyro distribution over the unconstrained joint vector.

        :param conditions: values of the observed sites, one data set or a leading axis of them,
            which then is the batch shape.
        """
        from numpyro_amortized.distributions import AmortizedPosterior, Frozen

        self._refuse_likelihood("posterior")
        own = self.for_groups(conditions)
        modules = self._trained()
        checked = own.check_conditions(conditions)
        context = own.encode(*nnx.split(modules), checked.values)
        frozen = Frozen(own, own.density(modules))
        return AmortizedPosterior(checked.unbatch(context), checked.unbatch(checked.values), frozen)

    def to_inference_data(
        self, rng_key: Array, conditions: Mapping[str, ArrayLike], *, num_samples: int = 1000
    ) -> "xarray.DataTree":
        """Posterior, predictions, prior, data and densities in ArviZ's schema.

        The draws are independent, and laid out as four chains so that ArviZ's diagnostics apply. A
        batch of data sets gets a dimension ``dataset``; select one before functions that expect
        a single data set, such as :func:`arviz.loo`.

        :param rng_key: a key.
        :param conditions: values of the observed sites, one data set or a leading axis of them.
        :param num_samples: draws for each data set, a multiple of four.
        :return: the groups posterior, posterior_predictive, prior, prior_predictive,
            observed_data, constant_data (where the model has array arguments besides the data),
            log_likelihood and log_prior (where the model has them), and sample_stats with
            ``log_q``, the log density of each draw.
        :raises ValueError: where ``num_samples`` is no multiple of four.
        """
        from numpyro_amortized.inference_data import to_inference_data

        self._refuse_likelihood("to_inference_data")
        return to_inference_data(rng_key, self, conditions, num_samples=num_samples)

    def _refuse_likelihood(self, method: str) -> None:
        if self.adapter.observations is not None:
            raise ValueError(
                f"{method}: this approximator has learned a likelihood, not a posterior. Use "
                "`likelihood(latents)` as the distribution of the observed site in a model, and "
                "NUTS; or train with Adapter.for_posterior."
            )

    def vector_density(self, predictive: ModelPredictive) -> VectorDensity:
        """The joint density at vectors of the network's space; the same one at every call.

        :param predictive: the model of the data's size.
        :raises ValueError: where it is not known, with the site and the reason.
        """
        if predictive not in self._vector_densities:
            self._vector_densities[predictive] = VectorDensity(self, predictive)
        return self._vector_densities[predictive]

    def data_density(self, argument: str) -> VectorDensity:
        """The joint density at vectors, and at data as they are in training.

        :param argument: what asks for it, for the message.
        :raises TypeError: where there is no model.
        :raises ValueError: where the density is not known, with the reason.
        """
        if self.predictive is None:
            raise TypeError(
                f"{argument}: expected an approximator of a NumPyro model, whose density is known, "
                f"got one of {type(self.source).__name__}. Leave it out."
            )
        if (varying := self.varying_size) is not None:
            raise ValueError(
                f"{argument}: expected data of one size, but '{varying.name}' varies from "
                f"{varying.low} to {varying.high}, and densities are those of one size. Leave it "
                "out."
            )
        may_be_missing = self.adapter.may_be_missing
        if missing := [name for name in given_names(self.sites) if name in may_be_missing]:
            raise ValueError(
                f"{argument}: expected data that are complete, but values of {missing} may be "
                "missing, and the model's density at missing values is not known. Leave it out."
            )
        return self.vector_density(self.predictive)

    @cached_property
    def _vector_densities(self) -> dict[ModelPredictive, VectorDensity]:
        return {}

    @cached_property
    def to_vectors(self) -> Callable[[Batch, Batch], Array]:
        """Unconstrained vectors ``(num_conditions, size)`` of latents, one draw per data set."""

        def one(latents: Batch, given: Batch) -> Array:
            return self.adapter.forward({**latents, **given})["inference_variables"]

        return jax.jit(jax.vmap(one))

    @cached_property
    def draw_vectors(self) -> Callable[..., tuple[Array, Array]]:
        """Draws and their log densities in the network's space, for each key and data set."""

        def draw(
            graphdef: nnx.GraphDef, state: nnx.State, num_samples: int, keys: Array, observed: Batch
        ) -> tuple[Array, Array]:
            network = self.density(nnx.merge(graphdef, state))
            context = self.encode(graphdef, state, observed)

            def one(rng_key: Array, context: Array) -> tuple[Array, Array]:
                repeated = jnp.broadcast_to(context, (num_samples, *context.shape))
                return network.sample_and_log_prob(rng_key, repeated)

            return map_in_chunks(one, (keys, context), max(1, rows_in_cache() // num_samples))

        return jax.jit(draw, static_argnums=(0, 2))

    @cached_property
    def _sample_and_log_prob(self) -> Callable[..., tuple[Batch, Array]]:
        def sample(
            graphdef: nnx.GraphDef, state: nnx.State, num_samples: int, keys: Array, observed: Batch
        ) -> tuple[Batch, Array]:
            vectors, log_q = self.draw_vectors(graphdef, state, num_samples, keys, observed)
            sites = self.sites_at_vectors(vectors, observed)
            latents = {name: sites[name] for name in self.inferred_sites}
            return sites, log_q + self._variables_at(latents, observed)[1]

        return jax.jit(sample, static_argnums=(0, 2))

    def sites_at_vectors(self, vectors: Array, observed: Batch) -> Batch:
        """The sites at vectors of each data set, shape ``(num_conditions, num_samples, size)``."""
        return jax.vmap(jax.vmap(self.sites_at, in_axes=(0, None)))(vectors, observed)

    @cached_property
    def _log_prob(self) -> Callable[..., Array]:
        def log_prob(
            graphdef: nnx.GraphDef, state: nnx.State, latents: Batch, observed: Batch
        ) -> Array:
            network = self.density(nnx.merge(graphdef, state))
            context = self.encode(graphdef, state, observed)
            variables, log_det = self._variables_at(latents, observed)
            return network.log_prob(variables, context[:, None]) + log_det

        return jax.jit(log_prob, static_argnums=0)


class SingleDensityApproximator(DensityApproximator):
    """One with a single way to sample and to evaluate its density."""

    def sample(
        self,
        rng_key: Array,
        num_samples: int,
        conditions: Mapping[str, ArrayLike],
        *,
        batch_size: int | None = None,
    ) -> dict[str, Array]:
        """Posterior draws of the latent sites, and the deterministic sites computed from them.

        For a likelihood, draws of observations; the conditions are then latents and context.

        :param rng_key: a key.
        :param num_samples: draws for each data set.
        :param conditions: values of the observed sites, one data set or a leading axis of them.
        :param batch_size: data sets at a time, which bounds memory; by default all.
        :return: values of shape ``(num_conditions, num_samples, *shape)``, without the first axis
            for one data set.
        :raises ValueError: where the conditions do not fit the model.
        :raises RuntimeError: before ``fit``.
        """
        num_samples = check_num_samples(num_samples)
        own = self.for_groups(conditions, any_sizes=True)
        graphdef, state = nnx.split(self._trained())
        checked = own.check_conditions(conditions)
        keys = random.split(typed_key(rng_key), checked.num_datasets)
        draw = partial(own._sample, graphdef, state, num_samples)
        return checked.unbatch(in_batches(draw, (keys, checked.values), batch_size))

    def log_prob(self, data: Mapping[str, ArrayLike]) -> Array:
        """Log posterior density in the sites' own, constrained space.

        For a likelihood, the log density of observations, which may take the axis of samples.

        :param data: values of the inferred latent sites and of the observed sites; latents may
            carry a further axis of samples after that of the data sets.
        :return: shape ``(num_conditions,)`` or ``(num_conditions, num_samples)``, without the first
            axis for one data set.
        :raises ValueError: where the values do not fit the model.
        :raises RuntimeError: before ``fit``.
        """
        own = self.for_groups(data)
        graphdef, state = nnx.split(self._trained())
        return own._at_data(data, partial(own._log_prob, graphdef, state))

    @cached_property
    def _sample(self) -> Callable[..., Batch]:
        def sample(
            graphdef: nnx.GraphDef, state: nnx.State, num_samples: int, keys: Array, observed: Batch
        ) -> Batch:
            vectors, _ = self.draw_vectors(graphdef, state, num_samples, keys, observed)
            return self.sites_at_vectors(vectors, observed)

        return jax.jit(sample, static_argnums=(0, 2))


def with_density(approximator: DensityApproximator) -> DensityApproximator:
    """
    :raises TypeError: where it is no approximator with a density.
    """
    if not isinstance(approximator, DensityApproximator):
        raise TypeError(
            "approximator: expected one that has a density and draws from it, such as a "
            f"ContinuousApproximator, got {type(approximator).__name__}."
        )
    return approximator


def rows_in_cache() -> int:
    """Draws at a time: on a CPU so few that what they need stays in its cache."""
    return 2**12 if jax.default_backend() == "cpu" else 2**18
