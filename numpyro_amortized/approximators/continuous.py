# SPDX-License-Identifier: Apache-2.0
"""Approximators of densities of continuous variables."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.observed_variables import ObservedMap
from numpyro_amortized.approximators.base import Approximator
from numpyro_amortized.approximators.chaining import chained
from numpyro_amortized.approximators.conditions import (
    check_data_names,
    check_latents,
    check_num_samples,
    given_names,
    in_batches,
    map_in_chunks,
)
from numpyro_amortized.approximators.context import (
    NetworkSpec,
    build_summary,
    context_of,
    make_network,
    network_name,
)
from numpyro_amortized.approximators.predictive import ModelPredictive
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.approximators.summaries import SummarySpec
from numpyro_amortized.approximators.vector_density import VectorDensity
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.coupling_flow import CouplingFlow
from numpyro_amortized.networks.mixed import Mixed
from numpyro_amortized.simulators.base import typed_key
from numpyro_amortized.simulators.model import ModelSimulator

if TYPE_CHECKING:
    import xarray

    from numpyro_amortized.distributions import AmortizedPosterior
    from numpyro_amortized.likelihood import FrozenLikelihood, NeuralLikelihood


@final
class ContinuousApproximator(Approximator):
    """Amortized posterior of the continuous latent sites of a model, or its likelihood.

    What comes back from the adapter's ``inference_variables`` is inferred given the rest: with
    :meth:`Adapter.for_likelihood`, the observed sites given the latents.

    :param source: a simulator, a data set, or a NumPyro model without arguments.
    :param adapter: sites to network inputs, by default :meth:`Adapter.for_posterior`.
    :param inference_network: a class, a :func:`functools.partial` of one (``size``,
        ``condition_size`` and ``rngs`` are supplied), or a ready module.
    :param summary_network: the same for the network that summarizes data (``size`` and ``rngs`` are
        supplied), or a mapping of them where several arrays are summarized. By default
        :class:`~numpyro_amortized.networks.DeepSet` for a set,
        :class:`~numpyro_amortized.networks.GRU` for a time series,
        :class:`~numpyro_amortized.networks.Convolution` for an image, and a
        :class:`~numpyro_amortized.networks.Fusion` of these for several.
    :param summary_regularizer: maps the summaries of a batch, ``(batch_size, summary_size)``, to a
        number that is added to the training loss, such as
        :func:`~numpyro_amortized.networks.mmd_to_normal`; by default none.
    :param regularizer_weight: its factor.
    :raises ValueError: where an option does not fit the model.
    """

    def __init__(
        self,
        source: Source | Callable[[], object],
        *,
        adapter: Adapter | None = None,
        inference_network: NetworkSpec = CouplingFlow,
        summary_network: SummarySpec | None = None,
        summary_regularizer: Callable[[Array], Array] | None = None,
        regularizer_weight: float = 1.0,
    ) -> None:
        super().__init__(
            source,
            adapter=adapter,
            summary_network=summary_network,
            summary_regularizer=summary_regularizer,
            regularizer_weight=regularizer_weight,
        )
        self._inference_spec = inference_network
        self._frozen: Any = None
        self._densities: dict[ModelPredictive, VectorDensity] = {}

    @property
    def options(self) -> dict[str, Any]:
        return {
            "inference_network": self._inference_spec,
            "summary_network": self._given_summary,
            "summary_regularizer": self._regularizer,
            "regularizer_weight": self._regularizer_weight,
        }

    @property
    def inference_network(self) -> NetworkSpec:
        """The trained network; before ``fit``, what it is made from."""
        return self._inference_spec if self._modules is None else self._modules["inference_network"]

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
        graphdef, state = nnx.split(self._trained())
        checked = self.check_conditions(conditions)
        keys = random.split(typed_key(rng_key), checked.num_datasets)
        draw = partial(self._sample, graphdef, state, num_samples)
        return checked.unbatch(in_batches(draw, (keys, checked.values), batch_size))

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
        graphdef, state = nnx.split(self._trained())
        checked = self.check_conditions(conditions)
        keys = random.split(typed_key(rng_key), checked.num_datasets)
        draw = partial(self._sample_and_log_prob, graphdef, state, num_samples)
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
        graphdef, state = nnx.split(self._trained())
        sites, names = self.sites, self.inferred_sites
        check_data_names(sites, names, data, self._varying_size)
        given = given_names(sites, self._varying_size)
        checked = self.check_conditions({name: data[name] for name in given})
        latents, has_samples = check_latents(sites, names, data, checked)
        result = self._log_prob(graphdef, state, latents, checked.values)
        return checked.unbatch(result if has_samples else result[:, 0])

    def posterior(self, conditions: Mapping[str, ArrayLike]) -> "AmortizedPosterior":
        """The posterior as a NumPyro distribution over the unconstrained joint vector.

        :param conditions: values of the observed sites, one data set or a leading axis of them,
            which then is the batch shape.
        """
        from numpyro_amortized.distributions import AmortizedPosterior, Frozen

        self._refuse_likelihood("posterior")
        graphdef, state = nnx.split(self._trained())
        checked = self.check_conditions(conditions)
        context = self.encode(graphdef, state, checked.values)
        frozen = Frozen(self, graphdef, state)
        return AmortizedPosterior(checked.unbatch(context), checked.unbatch(checked.values), frozen)

    def likelihood(self, latents: Mapping[str, ArrayLike]) -> "NeuralLikelihood":
        """The distribution of an observed site given the latents, for use in a NumPyro model.

        It is that of the first observed site whose value is not among ``latents``: several sites
        chain in trace order. Pure and traceable, with gradients in the latents.

        :param latents: values ``(*batch, *shape)`` of the latents and the context, and of the
            observed sites before; the batch axes broadcast. Context and observed sites have the
            shape of one observation where observations are independent given the latents.
        :return: a distribution of batch shape ``batch``; under a plate, its observations.
        :raises ValueError: where the adapter is none of a likelihood, or values do not fit.
        :raises RuntimeError: before ``fit``.
        """
        from numpyro_amortized.likelihood import NeuralLikelihood

        observations = self.adapter.observations
        if observations is None:
            raise ValueError(
                "likelihood: expected an approximator of a likelihood: pass "
                "adapter=Adapter.for_likelihood(simulator)."
            )
        frozen = self._frozen_likelihoods(observations.maps)
        given, earlier, index = chained(self.sites, observations, latents)
        context = self.adapter.forward(given)["inference_conditions"]
        return NeuralLikelihood(context, earlier, frozen[index])

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

    def _frozen_likelihoods(self, maps: tuple[ObservedMap, ...]) -> "tuple[FrozenLikelihood, ...]":
        """One for each observed site; the same ones until training goes on."""
        from numpyro_amortized.likelihood import FrozenLikelihood

        network = self._trained()["inference_network"]
        graphdef, state = nnx.split(network)
        leaves = tuple(map(id, jax.tree.leaves(state)))
        if self._frozen is None or self._frozen[0] != leaves:
            with jax.ensure_compile_time_eval():  # it may be asked for first while tracing
                own = jax.tree.map(jnp.copy, state)  # training goes on in place
            frozen = tuple(FrozenLikelihood(graphdef, own, maps, i) for i in range(len(maps)))
            self._frozen = leaves, frozen, state  # the state, since an identity may be used again
        return self._frozen[1]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}", str(self.adapter)]
        lines += [f"inference network: {network_name(self.inference_network)}"]
        lines += self._describe_summary()
        override = (
            "posterior(simulator, sites=..., sets={site: axis or None}, "
            "series={site: axis or None}, images={site: axes or None}), summary_network=..."
        )
        if self.adapter.observations is not None:
            override = "likelihood(simulator, sets={site: axis or None})"
        lines += [f"override: Adapter.for_{override}"]
        return "\n  ".join("\n".join(lines).splitlines())

    @property
    def _needed_sites(self) -> tuple[str, ...]:
        given = [site.name for site in self.sites.values() if site.is_given]
        return (*self.inferred_sites, *given)

    @cached_property
    def predictive(self) -> ModelPredictive | None:
        """The model at values of the inferred latents, ``None`` where there is none to ask."""
        if not isinstance(self.source, ModelSimulator) or self.adapter.observations is not None:
            return None
        return ModelPredictive(self.source, self.inferred_sites)

    def vector_density(self, predictive: ModelPredictive) -> VectorDensity:
        """The joint density at vectors of the network's space; the same one at every call.

        :param predictive: the model of the data's size.
        :raises ValueError: where it is not known, with the site and the reason.
        """
        if predictive not in self._densities:
            self._densities[predictive] = VectorDensity(self, predictive)
        return self._densities[predictive]

    @property
    def size(self) -> int:
        """Length of the unconstrained vector of all inferred latents."""
        return self._row["inference_variables"].shape[-1]

    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        modules, condition_size = build_summary(self._summary_spec, self._row, rngs)
        spec, observations = self._inference_spec, self.adapter.observations
        if observations is not None:
            spec = partial(Mixed, parts=observations.parts, flow=spec)
        modules["inference_network"] = make_network(
            spec, rngs, size=self.size, condition_size=condition_size
        )
        return modules

    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        variables, context = inputs["inference_variables"], context_of(modules, inputs)
        losses = modules["inference_network"].loss(rng_key, variables, context)
        return losses.mean(tuple(range(1, losses.ndim)))  # over the members of each simulation

    def _latents_at(self, vector: Array, given: Mapping[str, Array]) -> Batch:
        """Latents at one vector, shape ``(size,)``, for one data set."""
        context = {name: given[name] for name in given if self.sites[name].role == "context"}
        return self.adapter.inverse({"inference_variables": vector, **context})

    def _variables_at(self, latents: Batch, observed: Batch) -> tuple[Array, Array]:
        """Network variables and log-determinants of draws ``(num_conditions, num_samples)``."""

        def one(latents: Batch, given: Batch) -> tuple[Array, Array]:
            data = latents | given
            return self.adapter.forward(data)["inference_variables"], self.adapter.log_det_jac(data)

        return jax.vmap(jax.vmap(one, in_axes=(0, None)))(latents, observed)

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
            network = nnx.merge(graphdef, state)["inference_network"]
            context = self.encode(graphdef, state, observed)

            def one(rng_key: Array, context: Array) -> tuple[Array, Array]:
                repeated = jnp.broadcast_to(context, (num_samples, *context.shape))
                return network.sample_and_log_prob(rng_key, repeated)

            return map_in_chunks(one, (keys, context), max(1, _rows() // num_samples))

        return jax.jit(draw, static_argnums=(0, 2))

    @cached_property
    def _sample(self) -> Callable[..., Batch]:
        def sample(
            graphdef: nnx.GraphDef, state: nnx.State, num_samples: int, keys: Array, observed: Batch
        ) -> Batch:
            vectors, _ = self.draw_vectors(graphdef, state, num_samples, keys, observed)
            return self._sites_at(vectors, observed)

        return jax.jit(sample, static_argnums=(0, 2))

    @cached_property
    def _sample_and_log_prob(self) -> Callable[..., tuple[Batch, Array]]:
        def sample(
            graphdef: nnx.GraphDef, state: nnx.State, num_samples: int, keys: Array, observed: Batch
        ) -> tuple[Batch, Array]:
            vectors, log_q = self.draw_vectors(graphdef, state, num_samples, keys, observed)
            sites = self._sites_at(vectors, observed)
            latents = {name: sites[name] for name in self.inferred_sites}
            return sites, log_q + self._variables_at(latents, observed)[1]

        return jax.jit(sample, static_argnums=(0, 2))

    def sites_at(self, vector: Array, observed: Mapping[str, Array]) -> Batch:
        """Latent and deterministic sites at one unconstrained vector, shape ``(size,)``."""
        values = self._latents_at(vector, observed)
        latents = {name: values[name] for name in self.inferred_sites}
        if self.predictive is None:
            return latents
        return latents | self.predictive.deterministic(latents, observed)

    def _sites_at(self, vectors: Array, observed: Batch) -> Batch:
        """For vectors ``(num_conditions, num_samples, size)``."""
        return jax.vmap(jax.vmap(self.sites_at, in_axes=(0, None)))(vectors, observed)

    @cached_property
    def _log_prob(self) -> Callable[..., Array]:
        def log_prob(
            graphdef: nnx.GraphDef, state: nnx.State, latents: Batch, observed: Batch
        ) -> Array:
            network = nnx.merge(graphdef, state)["inference_network"]
            context = self.encode(graphdef, state, observed)
            variables, log_det = self._variables_at(latents, observed)
            return network.log_prob(variables, context[:, None]) + log_det

        return jax.jit(log_prob, static_argnums=0)


def _rows() -> int:
    """Draws at a time: on a CPU so few that what they need stays in its cache."""
    return 2**12 if jax.default_backend() == "cpu" else 2**18
