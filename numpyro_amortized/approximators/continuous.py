# SPDX-License-Identifier: Apache-2.0
"""Approximators of densities of continuous variables."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.adapters.observed_variables import ObservedMap
from numpyro_amortized.approximators.chaining import chained
from numpyro_amortized.approximators.context import (
    NetworkSpec,
    build_summary,
    context_of,
    make_network,
    network_name,
)
from numpyro_amortized.approximators.density import SingleDensityApproximator
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.approximators.summaries import SummarySpec
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.coupling_flow import CouplingFlow
from numpyro_amortized.networks.mixed import Mixed

if TYPE_CHECKING:
    from numpyro_amortized.likelihood import FrozenLikelihood, NeuralLikelihood


@final
class ContinuousApproximator(SingleDensityApproximator):
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
        return self._network("inference_network", self._inference_spec)

    def density(self, modules: nnx.Dict) -> DensityNetwork:
        return modules["inference_network"]

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
    def _kept_sites(self) -> tuple[str, ...]:
        return ()

    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        modules, condition_size = build_summary(self._summary_spec, self._row, rngs)
        spec, observations = self._inference_spec, self.adapter.observations
        if observations is not None:
            spec = partial(Mixed, parts=observations.parts, flow=spec)
        modules["inference_network"] = make_network(
            spec, rngs, size=self._size, condition_size=condition_size
        )
        return modules

    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        variables, context = inputs["inference_variables"], context_of(modules, inputs)
        losses = modules["inference_network"].loss(rng_key, variables, context)
        return losses.mean(tuple(range(1, losses.ndim)))  # over the members of each simulation
