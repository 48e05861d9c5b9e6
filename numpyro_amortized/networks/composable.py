# SPDX-License-Identifier: Apache-2.0
"""Networks of single groups that can be composed."""

from typing import final

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.linalg import cho_solve

from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.composition import Composed, composed_sample
from numpyro_amortized.networks.continuous_flow import ContinuousFlow, Level


@final
class Composable(DensityNetwork):
    """A flow of single groups, their covariances, and the prior.

    The score of the prior is needed at every noise level. Where the prior is N(0, I), it is known:
    ``-x / (data^2 + noise^2)``. Otherwise the networks learn it beside the posteriors, from a share
    of the simulations of which the context is dropped [1]; a flag tells them that it is.

    :param flow: of the variables given the context, with the flag where the prior is learned;
        made with ``normal=True``, of which the covariances are taken.
    :param prior_is_normal: whether the prior is N(0, I).
    :param dropped: share of the simulations from which the prior is learned.
    :raises TypeError: where the flow has no score.
    :raises ValueError: where it has no normal distribution, or its score is not defined.

    **References**

    1. Ho, J. and Salimans, T. (2022). Classifier-free diffusion guidance.
    """

    def __init__(
        self,
        flow: ContinuousFlow,
        *,
        prior_is_normal: bool,
        dropped: float = 0.2,
    ) -> None:
        if not isinstance(flow, ContinuousFlow):
            raise TypeError(
                "inference_network: expected DiffusionModel or FlowMatching, whose scores can be "
                f"composed, got {type(flow).__name__}."
            )
        if flow.normal is None:
            raise ValueError(
                "inference_network: expected a network that learns a normal distribution too, "
                f"whose covariances composition needs: {type(flow).__name__}(..., normal=True)."
            )
        self.flow = flow
        self.size = flow.size
        self.condition_size = flow.condition_size - (not prior_is_normal)
        self.prior_is_normal = prior_is_normal
        self.dropped = dropped
        x, context = jnp.zeros((1, flow.size)), jnp.zeros((1, flow.condition_size))
        jax.eval_shape(flow.score, jnp.zeros(1), x, context)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        drop_key, flow_key = random.split(rng_key)
        given = self._given(context)
        if not self.prior_is_normal:
            drop = random.bernoulli(drop_key, self.dropped, (*context.shape[:-1], 1))
            given = jnp.where(drop, self._nothing(given.dtype), given)
        return self.flow.loss(flow_key, variables, given)

    def log_prob(self, variables: Array, context: Array) -> Array:
        return self.flow.log_prob(variables, self._given(context))

    def sample(self, rng_key: Array, context: Array) -> Array:
        return self.flow.sample(rng_key, self._given(context))

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        return self.flow.sample_and_log_prob(rng_key, self._given(context))

    def prior_score(self, level: Level, x: Array) -> Array:
        """Score of the noisy prior at states ``(*batch, size)``."""
        if self.prior_is_normal:
            return -x / (level.data**2 + level.noise**2)
        return self.flow.score(level.time, x, self._nothing(x.dtype))

    def prior_precision(self, dtype: jnp.dtype) -> Array:
        """Inverse of the prior's covariance, shape ``(size, size)``."""
        if self.prior_is_normal:
            return jnp.eye(self.size, dtype=dtype)
        return self._precision(self._nothing(dtype))

    def compose(
        self,
        rng_key: Array,
        contexts: Array,
        num_samples: int,
        *,
        mini_batch_size: int,
        num_levels: int,
        last: float,
    ) -> Array:
        """Draws given all groups, see :func:`composed_sample`.

        :param rng_key: a key.
        :param contexts: of the groups, shape ``(num_groups, condition_size)``.
        :param num_samples: number of draws.
        :param mini_batch_size: groups at a time.
        :return: shape ``(num_samples, size)``.
        """
        start_key, loop_key = random.split(rng_key)
        chunks, weights = _chunks(self._given(contexts), mini_batch_size)
        prior_precision = self.prior_precision(contexts.dtype)

        def differences(chunk: Array, level: Level, x: Array, prior: Array) -> Array:
            context = chunks[chunk]
            excess = self.flow.score(level.time, x, context[:, None]) - prior
            precision = self._precision(context)
            moved = jnp.einsum("gij,gsj->gsi", precision, excess)
            moved += (level.data / level.noise) ** 2 * excess
            # the group's own precision also weighs what the prior alone says
            return jnp.einsum("g,gsi->si", weights[chunk], moved)

        def information(chunk: Array) -> Array:
            excess = self._precision(chunks[chunk]) - prior_precision
            return jnp.einsum("g,gij->ij", weights[chunk], excess)

        composed = Composed(
            self.prior_score, prior_precision, differences, information, len(chunks)
        )
        start = random.normal(start_key, (num_samples, self.size), contexts.dtype)
        return composed_sample(
            loop_key, composed, start, self.flow.level, num_levels=num_levels, last=last
        )

    def _precision(self, given: Array) -> Array:
        """Inverses of the covariances, shape ``(*batch, size, size)``."""
        assert self.flow.normal is not None
        factor = self.flow.normal.estimates(given)["scale_tril"]
        eye = jnp.broadcast_to(jnp.eye(self.size, dtype=factor.dtype), factor.shape)
        return cho_solve((factor, True), eye)

    def _given(self, context: Array) -> Array:
        """The context with the flag that it is there."""
        if self.prior_is_normal:
            return context
        return jnp.concatenate([context, jnp.zeros_like(context[..., :1])], axis=-1)

    def _nothing(self, dtype: jnp.dtype) -> Array:
        return jnp.zeros(self.flow.condition_size, dtype).at[-1].set(1)


def _chunks(contexts: Array, chunk_size: int) -> tuple[Array, Array]:
    """Contexts ``(num_chunks, chunk_size, size)``, and weights that are zero where they repeat."""
    length = len(contexts)
    chunk_size = min(chunk_size, length)
    num_chunks = -(-length // chunk_size)
    rows = jnp.arange(num_chunks * chunk_size).reshape(num_chunks, chunk_size)
    return contexts[jnp.minimum(rows, length - 1)], (rows < length).astype(contexts.dtype)
