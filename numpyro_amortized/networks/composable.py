# SPDX-License-Identifier: Apache-2.0
"""Networks of single groups that can be composed."""

from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.linalg import cho_solve

from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.composition import Composed, Sums, composed_sample
from numpyro_amortized.networks.continuous_flow import ContinuousFlow, Level

_LEAST = 1e-2  # of a variance given a noisy state, in units of the noise


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

        def prior(level: Level, x: Array) -> tuple[Array, Array]:
            if self.prior_is_normal:
                variance = level.data**2 + level.noise**2
                precision = variance / level.noise**2 * jnp.eye(self.size, dtype=x.dtype)
                return -x / variance, jnp.broadcast_to(precision, (*x.shape, self.size))
            return self._denoised(level, x, self._nothing(x.dtype))

        def groups(chunk: Array, level: Level, x: Array, prior: tuple[Array, Array]) -> Sums:
            score, precision = self._denoised(level, x, chunks[chunk][:, None])
            weight = weights[chunk][:, None, None]
            pull = jnp.einsum("gsij,gsj->gsi", precision, score - prior[0])
            return Sums(
                jnp.sum(weight * pull, axis=0),
                jnp.sum(weight[..., None] * (precision - prior[1]), axis=0),
            )

        composed = Composed(prior, groups, len(chunks))
        start = random.normal(start_key, (num_samples, self.size), contexts.dtype)
        return composed_sample(
            loop_key, composed, start, self.flow.level, num_levels=num_levels, last=last
        )

    def _denoised(self, level: Level, x: Array, given: Array) -> tuple[Array, Array]:
        """Scores, and precisions of the variables given noisy states.

        Where there is more noise than data, what the state tells adds to the precision that is
        learned; where there is less, the slope of the score tells, which sees how it differs from
        place to place.
        """
        score, slopes = _with_slopes(lambda x: self.flow.score(level.time, x, given), x)
        ratio = level.noise / level.data
        eye = jnp.eye(self.size, dtype=x.dtype)
        learned = self._precision(given) + eye / ratio**2
        # a covariance is noise^2 / data^2 (1 + noise^2 d score / dx), by Tweedie's formula
        local = _inverse(eye + level.noise**2 * slopes) / ratio**2
        return score, jnp.where(ratio > 1, learned, local)

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


def _with_slopes(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """Values, and their symmetric Jacobians, shape ``(*batch, size, size)``."""

    def along(direction: Array) -> tuple[Array, Array]:
        return jax.jvp(function, (x,), (jnp.broadcast_to(direction, x.shape),))

    directions = jnp.eye(x.shape[-1], dtype=x.dtype)
    value, slopes = jax.vmap(along, out_axes=(None, -1))(directions)
    return value, (slopes + jnp.swapaxes(slopes, -1, -2)) / 2


def _inverse(matrix: Array) -> Array:
    """Inverses of symmetric matrices, by Gauss-Jordan elimination with positive pivots.

    The matrices are small and many: eliminating in all of them at once is faster than LAPACK.
    """
    for k in range(matrix.shape[-1]):
        pivot = jnp.maximum(matrix[..., k, k, None], _LEAST)
        row, column = matrix[..., k, :] / pivot, matrix[..., :, k]
        matrix -= column[..., :, None] * row[..., None, :]
        matrix = matrix.at[..., k, :].set(row).at[..., :, k].set(-column / pivot)
        matrix = matrix.at[..., k, k].set(1 / pivot[..., 0])
    return matrix


def _chunks(contexts: Array, chunk_size: int) -> tuple[Array, Array]:
    """Contexts ``(num_chunks, chunk_size, size)``, and weights that are zero where they repeat."""
    length = len(contexts)
    chunk_size = min(chunk_size, length)
    num_chunks = -(-length // chunk_size)
    rows = jnp.arange(num_chunks * chunk_size).reshape(num_chunks, chunk_size)
    return contexts[jnp.minimum(rows, length - 1)], (rows < length).astype(contexts.dtype)
