# SPDX-License-Identifier: Apache-2.0
"""Networks of single groups that can be composed."""

from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax, random
from jax.scipy.linalg import cho_solve

from numpyro_amortized.networks.base import DensityNetwork
from numpyro_amortized.networks.composition import Composed, Prior, Sums, composed_sample
from numpyro_amortized.networks.continuous_flow import ContinuousFlow, Mixture, Prediction
from numpyro_amortized.networks.residual_mlp import ResidualMLP

_LEAST = 1e-2  # of a variance given a noisy state, in units of the noise
_LOG_RATIO = (-1.0, 1.2)  # of noise to data, where the mean prediction is learned: mean and sd


@final
class Composable(DensityNetwork):
    """A flow of single groups, their covariances, and its mean over all data.

    What a group tells is how its score differs from the prior's. Errors of both that are the same
    for all groups would add up. But the mean of the posterior's score over all data that could
    have been seen, given the noisy state, is the prior's: ``E[E[v | x, y] | x] = E[v | x]``. Of the
    learned scores that mean is learned too, from the states alone, and taken off instead of the
    prior's score: what remains of their errors has mean zero. The mean is learned
    from predictions, not from the noise in the state, of which they are nearly free where it is
    small. It is the score of the prior, too, where that is not known.

    :param flow: of the variables given the context; made with ``normal=True``, of which the
        covariances are taken.
    :param prior_is_normal: whether the prior is N(0, I).
    :param rngs: random streams of the initial parameters.
    :raises TypeError: where the flow has no score.
    :raises ValueError: where it has no normal distribution, or its score is not defined.
    """

    def __init__(
        self,
        flow: ContinuousFlow,
        *,
        prior_is_normal: bool,
        rngs: nnx.Rngs,
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
        depth, width = flow.network.shape
        self.flow = flow
        self.mean = ResidualMLP(flow.size, flow.size, widths=(width,) * depth, rngs=rngs)
        self.size = flow.size
        self.condition_size = flow.condition_size
        self.prior_is_normal = prior_is_normal
        x, context = jnp.zeros((1, flow.size)), jnp.zeros((1, flow.condition_size))
        jax.eval_shape(flow.score, jnp.zeros(1), x, context)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        flow_key, mean_key = random.split(rng_key)
        own = self.flow.loss(flow_key, variables, context)
        return own + self._mean_loss(mean_key, variables, context)

    def _mean_loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        """Mean squared error of the mean prediction, weighted as the scores' at small noise."""
        ratio_key, noise_key = random.split(rng_key)
        location, scale = _LOG_RATIO
        normal = random.normal(ratio_key, variables.shape[:-1], variables.dtype)
        level = Mixture.of_ratio(jnp.exp(location + scale * normal))
        noise = random.normal(noise_key, variables.shape, variables.dtype)
        x = level.data * variables + level.noise * noise
        predicted = lax.stop_gradient(self.flow.prediction(context)(x, level))
        error = (self._mean_prediction(x, level) - predicted) / level.noise
        return jnp.mean(error**2, axis=-1)

    def _mean_prediction(self, x: Array, level: Mixture) -> Array:
        """Zero, were the prior N(0, I) and the flow without error."""
        return self.mean(x, level.log_noise_level, self.mean.condition(x[..., :0]))

    def log_prob(self, variables: Array, context: Array) -> Array:
        return self.flow.log_prob(variables, context)

    def sample(self, rng_key: Array, context: Array) -> Array:
        return self.flow.sample(rng_key, context)

    def sample_and_log_prob(self, rng_key: Array, context: Array) -> tuple[Array, Array]:
        return self.flow.sample_and_log_prob(rng_key, context)

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
        chunks, weights = _chunks(contexts, mini_batch_size)

        def groups(chunk: Array, level: Mixture, x: Array, prior: Prior) -> Sums:
            given = chunks[chunk][:, None]
            score, local = _denoised(self.flow.prediction(given), level, x)
            precision = _select(level, self._precision(given), local)
            weight = weights[chunk][:, None, None]
            pull = jnp.einsum("gsij,gsj->gsi", precision, score - prior.center)
            return Sums(
                jnp.sum(weight * pull, axis=0),
                jnp.sum(weight[..., None] * (precision - prior.precision), axis=0),
            )

        composed = Composed(self._prior, groups, len(chunks))
        start = random.normal(start_key, (num_samples, self.size), contexts.dtype)
        return composed_sample(loop_key, composed, start, num_levels=num_levels, last=last)

    def _prior(self, level: Mixture, x: Array) -> Prior:
        center, local = _denoised(self._mean_prediction, level, x)
        eye = jnp.broadcast_to(jnp.eye(self.size, dtype=x.dtype), local.shape)
        if self.prior_is_normal:
            return Prior(-x, center, eye / level.noise[..., None] ** 2)
        return Prior(center, center, _select(level, eye, local))

    def _precision(self, given: Array) -> Array:
        """Inverses of the covariances, shape ``(*batch, size, size)``."""
        assert self.flow.normal is not None
        factor = self.flow.normal.estimates(given)["scale_tril"]
        eye = jnp.broadcast_to(jnp.eye(self.size, dtype=factor.dtype), factor.shape)
        return cho_solve((factor, True), eye)


def _denoised(predict: Prediction, level: Mixture, x: Array) -> tuple[Array, Array]:
    """Scores, and precisions of the variables given noisy states by the slopes of the scores."""
    value, slopes = _with_slopes(lambda x: level.score(x, predict(x, level)), x)
    eye = jnp.eye(x.shape[-1], dtype=x.dtype)
    # a covariance is noise^2 / data^2 (1 + noise^2 d score / dx), by Tweedie's formula
    noise = level.noise[..., None]
    return value, _inverse(eye + noise**2 * slopes) * (level.data / level.noise)[..., None] ** 2


def _select(level: Mixture, learned: Array, local: Array) -> Array:
    """Precisions given noisy states, shape ``(*batch, size, size)``.

    Where there is more noise than data, what the state tells adds to the precision that is learned;
    where there is less, the slope of the score tells, which sees how it differs from place to
    place.

    :param learned: precisions without the state.
    :param local: by the slopes.
    """
    noise, data = level.noise[..., None], level.data[..., None]
    told = (data / noise) ** 2 * jnp.eye(local.shape[-1], dtype=local.dtype)
    return jnp.where(noise > data, learned + told, local)


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
