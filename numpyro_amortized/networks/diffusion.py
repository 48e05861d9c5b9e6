# SPDX-License-Identifier: Apache-2.0
"""Diffusion models."""

from collections.abc import Callable, Sequence
from typing import final

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax, random
from jax.scipy.special import ndtri

from numpyro_amortized.networks.continuous_flow import (
    ContinuousFlow,
    Mixture,
    Prediction,
    Velocity,
    stratified,
)
from numpyro_amortized.networks.mlp import swish
from numpyro_amortized.networks.ode import FixedStep, Solver

_LEAST_ANGLE = 1e-3  # the score of a narrow distribution is not defined at its end


@final
class DiffusionModel(ContinuousFlow):
    """Denoiser of all noise levels, preconditioned as in [1], on the circular path of [2].

    At time ``t`` the state is ``cos(a) * variables + sin(a) * noise`` with the angle ``a = (1 -
    t) * pi / 2``: noise at 0, the variables at 1. The noise level of [1] is ``tan(a)``, and its
    variables are the state over ``cos(a)``; for standardized variables the two are the same model.
    Variance is preserved, both ends are exact, and the velocity of the probability flow is ``-pi /
    2`` times what the network predicts.

    :param size: number of inference variables.
    :param condition_size: length of the context; may be 0.
    :param widths: width of each block of :class:`ResidualMLP`, all equal.
    :param embedding_size: length of its embeddings of time and context.
    :param activation: its activation.
    :param noise_mean: mean of the logarithm of the noise level in training.
    :param noise_std: its standard deviation; that of [1], 1.2, leaves few levels as small as
        narrow posteriors need.
    :param solver: :class:`FixedStep` or :class:`Adaptive`, of the probability flow.
    :param num_probes: size up to which the divergence is exact, see :class:`ContinuousFlow`.
    :param normal: whether a normal distribution is learned too, which the flow corrects, see
        :class:`ContinuousFlow`.
    :param rngs: random streams of the initial parameters.

    **References**

    1. *Elucidating the Design Space of Diffusion-Based Generative Models*, Karras, Aittala, Aila
       and Laine (2022).
    2. *Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models*, Lu and Song
       (2025).

    **Example**

    >>> network = DiffusionModel(2, 3, widths=(16,) * 2, rngs=nnx.Rngs(0))
    >>> network.stochastic_sample(random.key(0), jnp.zeros((5, 3))).shape
    (5, 2)
    """

    def __init__(
        self,
        size: int,
        condition_size: int,
        *,
        widths: Sequence[int] = (256,) * 5,
        embedding_size: int = 32,
        activation: Callable[[Array], Array] = swish,
        noise_mean: float = -1.2,
        noise_std: float = 1.8,
        solver: Solver = FixedStep(),  # noqa: B008
        num_probes: int = 32,
        normal: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        if noise_std <= 0:
            raise ValueError(f"DiffusionModel: expected noise_std > 0, got {noise_std}.")
        super().__init__(
            size,
            condition_size,
            widths=widths,
            embedding_size=embedding_size,
            activation=activation,
            solver=solver,
            num_probes=num_probes,
            normal=normal,
            rngs=rngs,
        )
        self.noise_mean = noise_mean
        self.noise_std = noise_std

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        """Mean squared error of the prediction, at one random noise level for each event.

        With the weight of [1], which makes the loss of an untrained network the same at all levels.
        """
        level_key, noise_key = random.split(rng_key)
        normal_key = random.fold_in(rng_key, 2)
        batch, dtype = variables.shape[:-1], variables.dtype
        uniform = stratified(level_key, batch, dtype)
        tiny = jnp.finfo(dtype).eps
        normal = ndtri(jnp.clip(uniform, tiny, 1 - tiny))
        mixture = _mixture(jnp.arctan(jnp.exp(self.noise_mean + self.noise_std * normal)))
        noise = random.normal(noise_key, variables.shape, dtype)
        x = mixture.data * variables + mixture.noise * noise
        target = mixture.data * noise - mixture.noise * variables
        prediction = self.prediction(context, in_training=True)(x, mixture)
        losses = jnp.mean((prediction - target) ** 2, axis=-1)
        return losses + self.normal_loss(normal_key, variables, context)

    def score(self, t: Array, x: Array, context: Array) -> Array:
        """Gradient in ``x`` of the log density of the noisy variables at time ``t``.

        Angles below .001 count as that: a standard deviation of .001 of noise is left.

        :param t: times from 0, pure noise, to 1, the variables themselves; shape ``(*batch,)``.
        :param x: noisy variables, shape ``(*batch, size)``.
        :param context: shape ``(*batch, condition_size)``. Batch axes broadcast.
        """
        mixture = _mixture(jnp.maximum(_angle(jnp.asarray(t, x.dtype)), _LEAST_ANGLE))
        return mixture.score(x, self.prediction(context)(x, mixture))

    def conditional_velocity(self, predict: Prediction) -> Velocity:
        def velocity(t: Array, x: Array) -> Array:
            return -jnp.pi / 2 * predict(x, _mixture(_angle(t)))

        return velocity

    def stochastic_sample(
        self,
        rng_key: Array,
        context: Array,
        *,
        steps: int = 64,
        churn: float = 20.0,
        grading: float = 2.0,
    ) -> Array:
        """One draw for each context, with fresh noise in every step (algorithm 2 of [1]).

        Noise corrects errors of earlier steps, at the price of more steps.

        :param rng_key: a key.
        :param context: conditions, shape ``(*batch, condition_size)``.
        :param steps: number of steps, each of two evaluations of the network.
        :param churn: ``S_churn``: a step first raises the noise level by the factor
            ``1 + min(churn / steps, sqrt(2) - 1)``; 0 for the deterministic sampler of Heun.
        :param grading: see :class:`FixedStep`.
        :return: draws, shape ``(*batch, size)``.
        """
        predict_mixture = self.prediction(context)
        raised = 1 + min(churn / steps, 2**0.5 - 1)

        def predict(angle: Array, x: Array) -> Array:
            return predict_mixture(x, _mixture(angle))

        def step(x: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
            angle, following, key = row
            before, angle = angle, jnp.arctan2(raised * jnp.sin(angle), jnp.cos(angle))
            # data shares are kept in proportion, and noise is added up to a variance of one
            kept = jnp.sin(angle) / (raised * jnp.sin(before))
            added = jnp.sin(angle) * (1 - raised**-2) ** 0.5
            x = kept * x + added * random.normal(key, x.shape, x.dtype)
            slope = predict(angle, x)
            end = x + (following - angle) * slope
            return x + (following - angle) / 2 * (slope + predict(following, end)), None

        start_key, loop_key = random.split(rng_key)
        x = self._noise(start_key, context)
        times = FixedStep(steps=steps, grading=grading).times()
        angles = jnp.asarray(np.pi / 2 * (1 - times), x.dtype)
        rows = (angles[:-1], angles[1:], random.split(loop_key, steps))
        return lax.scan(step, x, rows)[0]


def _angle(t: Array) -> Array:
    return jnp.pi / 2 * (1 - t)


def _mixture(angle: Array) -> Mixture:
    return Mixture(jnp.cos(angle)[..., None], jnp.sin(angle)[..., None])
