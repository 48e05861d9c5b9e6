# SPDX-License-Identifier: Apache-2.0
"""Approximators of densities of continuous variables."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, final

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.observed_variables import ObservedMap
from numpyro_amortized.approximators.chaining import chained
from numpyro_amortized.approximators.conditions import check_num_samples, in_batches
from numpyro_amortized.approximators.context import (
    build_summary,
    context_of,
    make_network,
)
from numpyro_amortized.approximators.density import SingleDensityApproximator
from numpyro_amortized.approximators.hierarchy import (
    InferenceSpec,
    ancestral_draws,
    check_options,
    describe_networks,
    hierarchical_network,
    local_draws,
    number_of_groups,
    resized,
)
from numpyro_amortized.approximators.sources import Source, as_source
from numpyro_amortized.approximators.summaries import SummarySpec
from numpyro_amortized.concrete import concrete_values
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.coupling_flow import CouplingFlow
from numpyro_amortized.networks.mixed import Mixed
from numpyro_amortized.simulators.base import typed_key
from numpyro_amortized.simulators.model import ModelSimulator

if TYPE_CHECKING:
    from numpyro_amortized.likelihood import FrozenLikelihood, NeuralLikelihood


@final
class ContinuousApproximator(SingleDensityApproximator):
    """Amortized posterior of the continuous latent sites of a model, or its likelihood.

    What comes back from the adapter's ``inference_variables`` is inferred given the rest: with
    :meth:`Adapter.for_likelihood`, the observed sites given the latents.

    Where a plate of the model has many groups with latents of their own, and the model allows it,
    the posterior is that of the global latents given all groups times, for each group, that of its
    latents given the globals and its own data. Both are trained together.

    :param source: a simulator, a data set, or a NumPyro model without arguments.
    :param adapter: sites to network inputs, by default :meth:`Adapter.for_posterior`, with
        ``hierarchical=None``: printing the approximator tells which posterior it is, and why.
    :param inference_network: a class, a :func:`functools.partial` of one (``size``,
        ``condition_size`` and ``rngs`` are supplied), or a ready module; where the posterior
        factorizes over groups a mapping, ``{"globals": ..., "locals": ...}``, or one for both. By
        default that of the locals is small, since it is evaluated for every group.
    :param summary_network: the same for the network that summarizes data (``size`` and ``rngs`` are
        supplied), or a mapping of them where several arrays are summarized: by name of the site,
        and by name of the plate for the set of groups. By default
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
        inference_network: InferenceSpec = CouplingFlow,
        summary_network: SummarySpec | None = None,
        summary_regularizer: Callable[[Array], Array] | None = None,
        regularizer_weight: float = 1.0,
    ) -> None:
        source = as_source(source)
        if adapter is None and isinstance(source, ModelSimulator):
            adapter = Adapter.for_posterior(source, hierarchical=None)
        super().__init__(
            source,
            adapter=adapter,
            summary_network=summary_network,
            summary_regularizer=summary_regularizer,
            regularizer_weight=regularizer_weight,
        )
        check_options(inference_network, summary_regularizer, self.adapter.groups)
        self._inference_spec = inference_network
        self._of_size: dict[int, ContinuousApproximator] = {}
        self._frozen: Any = None

    @property
    def options(self) -> dict[str, Any]:
        return {
            "inference_network": self._inference_spec,
            "summary_network": self._given_summary,
            "summary_regularizer": self._regularizer,
            "regularizer_weight": self._regularizer_weight,
        }

    @property
    def inference_network(self) -> InferenceSpec:
        """The trained network; before ``fit``, what it is made from."""
        return self._network("inference_network", self._inference_spec)

    def density(self, modules: nnx.Dict) -> DensityNetwork:
        return modules["inference_network"]

    def ancestral_sample(
        self,
        rng_key: Array,
        num_samples: int,
        conditions: Mapping[str, ArrayLike],
        ancestral_conditions: Mapping[str, ArrayLike],
        *,
        batch_size: int | None = None,
    ) -> dict[str, Array]:
        """Draws of the groups' latents, given the global ones and each group's own data.

        Groups may be fewer or more than in training, and others than those that told the globals.

        :param rng_key: a key.
        :param num_samples: draws for each group.
        :param conditions: values of the observed sites, one data set or a leading axis of them; of
            any number of groups.
        :param ancestral_conditions: values of the global latents, ``(num_conditions, num_samples,
            *shape)``, such as draws of :meth:`sample`: one for each draw; or
            ``(num_conditions, *shape)``, one for all. Others are let pass.
        :param batch_size: data sets at a time, which bounds memory; by default all.
        :return: values ``(num_conditions, num_groups, num_samples, ...)`` of the local latents,
            without the first axis for one data set; what follows is the site's shape without its
            axis of groups.
        :raises ValueError: where the posterior does not factorize over groups, or values do not
            fit.
        :raises RuntimeError: before ``fit``.
        """
        num_samples = check_num_samples(num_samples)
        own = self.for_groups(conditions, warn=False)
        draw, checked, latents = ancestral_draws(own, num_samples, conditions, ancestral_conditions)
        keys = random.split(typed_key(rng_key), checked.num_datasets)
        return checked.unbatch(in_batches(draw, (keys, latents, checked.values), batch_size))

    def for_groups(
        self, conditions: Mapping[str, ArrayLike], *, any_sizes: bool = False, warn: bool = True
    ) -> Self:
        groups = self.adapter.groups
        if groups is None or not isinstance(conditions, Mapping):
            return self
        size = number_of_groups(self, groups, conditions, any_sizes=any_sizes, warn=warn)
        if size is None:
            return self
        if size not in self._of_size:
            with concrete_values():  # it may be asked for first while tracing
                source, adapter = resized(self, groups, size)
            self._of_size[size] = ContinuousApproximator(source, adapter=adapter, **self.options)
        other = self._of_size[size]
        other._modules = self._modules  # networks are the same for any number of groups
        return other

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

    def _frozen_likelihoods(self, maps: tuple[ObservedMap, ...]) -> "tuple[FrozenLikelihood, ...]":
        """One for each observed site; the same ones until training goes on."""
        from numpyro_amortized.likelihood import FrozenLikelihood

        network = self._trained()["inference_network"]
        graphdef, state = nnx.split(network)
        leaves = tuple(map(id, jax.tree.leaves(state)))
        if self._frozen is None or self._frozen[0] != leaves:
            with concrete_values():  # it may be asked for first while tracing
                own = jax.tree.map(jnp.copy, state)  # training goes on in place
            frozen = tuple(FrozenLikelihood(graphdef, own, maps, i) for i in range(len(maps)))
            self._frozen = leaves, frozen, state  # the state, since an identity may be used again
        return self._frozen[1]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}", str(self.adapter)]
        lines += describe_networks(self.inference_network, self.adapter.groups)
        lines += self._describe_summary()
        override = (
            "posterior(simulator, sites=..., sets={site: axis or None}, "
            "series={site: axis or None}, images={site: axes or None}, hierarchical=False), "
            "summary_network=..."
        )
        if self.adapter.observations is not None:
            override = "likelihood(simulator, sets={site: axis or None})"
        lines += [f"override: Adapter.for_{override}"]
        return "\n  ".join("\n".join(lines).splitlines())

    @property
    def _kept_sites(self) -> tuple[str, ...]:
        return ()

    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        modules, condition_size = build_summary(self._summary_spec, self._row, rngs)
        spec: Any = self._inference_spec
        observations = self.adapter.observations
        if self.adapter.groups is not None:
            spec = hierarchical_network(spec, self.adapter.groups, modules["summary_network"])
        if observations is not None:
            spec = partial(Mixed, parts=observations.parts, flow=spec)
        modules["inference_network"] = make_network(
            spec, rngs, size=self.num_variables, condition_size=condition_size
        )
        return modules

    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        variables, context = inputs["inference_variables"], context_of(modules, inputs)
        losses = modules["inference_network"].loss(rng_key, variables, context)
        return losses.mean(tuple(range(1, losses.ndim)))  # over the members of each simulation

    @cached_property
    def draw_locals(self) -> Callable[..., Batch]:
        """Draws of the groups' latents, where the posterior factorizes over groups."""
        return local_draws(self)
