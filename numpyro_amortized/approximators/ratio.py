# SPDX-License-Identifier: Apache-2.0
"""Approximators of the ratio of a likelihood to the evidence."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, final

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, random
from jax.typing import ArrayLike

from numpyro_amortized.adapters.adapter import Adapter
from numpyro_amortized.approximators.conditions import check_positive
from numpyro_amortized.approximators.context import (
    NetworkSpec,
    build_summary,
    context_of,
    make_network,
    network_name,
)
from numpyro_amortized.approximators.latent import LatentApproximator
from numpyro_amortized.approximators.sources import Source
from numpyro_amortized.datasets import Batch
from numpyro_amortized.networks.mlp import MLP


@final
class RatioApproximator(LatentApproximator):
    """Amortized ratio of ``p(observed | latents)`` to ``p(observed)``, by contrast [1].

    A classifier tells latents that belong to a data set from those of other simulations. Its
    ratio is normalized: besides ``K`` candidates there is a class of data sets that belong to
    none.

    :param source: a simulator, a data set, or a NumPyro model without arguments.
    :param adapter: sites to network inputs, by default :meth:`Adapter.for_posterior`.
    :param inference_network: a class or partial of one (``size``, ``out_size``, ``context_size``
        and ``rngs`` are supplied), or a ready module: inference variables and context to one
        number.
    :param summary_network: a class or partial of one, or a ready module, that summarizes sets.
    :param K: number of candidates.
    :param gamma: odds that a data set belongs to one of them.
    :raises ValueError: where ``K`` or ``gamma`` is not positive.

    **References**

    1. *Contrastive Neural Ratio Estimation*, Miller, Weniger and Forré (2022).
    """

    def __init__(
        self,
        source: Source | Callable[[], object],
        *,
        adapter: Adapter | None = None,
        inference_network: NetworkSpec = MLP,
        summary_network: NetworkSpec | None = None,
        K: int = 5,
        gamma: float = 1.0,
    ) -> None:
        check_positive(K=K)
        if not 0 < gamma < float("inf"):
            raise ValueError(f"gamma: expected a positive number, got {gamma!r}.")
        super().__init__(source, adapter=adapter, summary_network=summary_network)
        self.K, self.gamma = K, gamma
        self._inference_spec = inference_network

    @property
    def options(self) -> dict[str, Any]:
        return {
            "inference_network": self._inference_spec,
            "summary_network": self._given_summary,
            "K": self.K,
            "gamma": self.gamma,
        }

    @property
    def inference_network(self) -> NetworkSpec:
        """The trained network; before ``fit``, what it is made from."""
        return self._network("inference_network", self._inference_spec)

    def log_ratio(self, data: Mapping[str, ArrayLike]) -> Array:
        """Log of the likelihood's ratio to the evidence; pure and traceable, with gradients.

        In a model it stands as ``numpyro.factor("ratio", approximator.log_ratio(...))``.

        :param data: values of the inferred latent sites and of the observed sites; latents may
            carry a further axis of samples after that of the data sets.
        :return: shape ``(num_conditions,)`` or ``(num_conditions, num_samples)``, without the first
            axis for one data set.
        :raises ValueError: where the values do not fit the model.
        :raises RuntimeError: before ``fit``.
        """
        graphdef, state = nnx.split(self._trained())
        return self._at_data(data, partial(self._log_ratio, graphdef, state))

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}(K={self.K}, gamma={self.gamma})", str(self.adapter)]
        lines += [f"inference network: {network_name(self.inference_network)}"]
        lines += self._describe_summary()
        return "\n  ".join("\n".join(lines).splitlines())

    @property
    def _kept_sites(self) -> tuple[str, ...]:
        return ()

    def _build(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        modules, condition_size = build_summary(self._summary_spec, self._row, rngs)
        modules["inference_network"] = make_network(
            self._inference_spec,
            rngs,
            size=self.num_variables,
            out_size=1,
            context_size=condition_size,
        )
        return modules

    def _loss(self, modules: nnx.Dict, rng_key: Array, inputs: Batch) -> Array:
        variables, context = inputs["inference_variables"], context_of(modules, inputs)
        if len(variables) <= self.K:
            raise ValueError(
                f"batch_size: expected more than the K={self.K} candidates, got {len(variables)}."
            )
        candidates = _with_negatives(rng_key, variables, self.K)
        logits = modules["inference_network"](candidates, context[:, None])[..., 0]
        losses = contrastive_loss(logits, self.gamma)
        return losses.reshape(len(losses), -1).mean(-1)

    @cached_property
    def _log_ratio(self) -> Callable[..., Array]:
        def log_ratio(
            graphdef: nnx.GraphDef, state: nnx.State, latents: Batch, observed: Batch
        ) -> Array:
            network = nnx.merge(graphdef, state)["inference_network"]
            context = self.encode(graphdef, state, observed)

            def one(latents: Batch, given: Batch) -> Array:
                return self.adapter.forward(latents | given)["inference_variables"]

            variables = jax.vmap(jax.vmap(one, in_axes=(0, None)))(latents, observed)
            return network(variables, context[:, None])[..., 0]

        return jax.jit(log_ratio, static_argnums=0)


def _with_negatives(rng_key: Array, variables: Array, num_negatives: int) -> Array:
    """Variables and those of other simulations, ``(batch, 1 + num_negatives, *shape)``.

    In a random order, the negatives of a simulation are those that follow it.
    """
    order = random.permutation(rng_key, len(variables))
    follow = (jnp.arange(len(order))[:, None] + jnp.arange(num_negatives + 1)) % len(order)
    # the rank of each simulation in that order leads back to its own row
    return variables[order[follow[jnp.argsort(order)]]]


def contrastive_loss(logits: Array, gamma: float) -> Array:
    """Loss of each simulation.

    :param logits: log ratios of the latents that belong to it, and of K others, shape
        ``(batch, K + 1, ...)``.
    :param gamma: odds that a data set belongs to one of K candidates.
    :return: shape ``(batch, ...)``.
    """
    num_candidates = logits.shape[1] - 1
    log_gamma, log_K = jnp.log(gamma), jnp.log(num_candidates)

    def normalizer(logits: Array) -> Array:
        return jnp.logaddexp(log_K, log_gamma + jax.nn.logsumexp(logits, axis=1))

    # eqs. 5 and 7 of Miller et al. (2022): one of the candidates belongs, or none does
    belongs = log_gamma + logits[:, 0] - normalizer(logits[:, :-1])
    none = log_K - normalizer(logits[:, 1:])
    return -(gamma * belongs + none) / (1 + gamma)
