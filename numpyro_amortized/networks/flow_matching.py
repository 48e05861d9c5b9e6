# SPDX-License-Identifier: Apache-2.0
"""Flow matching."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax, random

from numpyro_amortized.networks.continuous_flow import (
    ContinuousFlow,
    Mixture,
    Prediction,
    Velocity,
    stratified,
)
from numpyro_amortized.networks.mlp import swish
from numpyro_amortized.networks.ode import FixedStep, Solver

_LAST = 0.999  # the score of a narrow distribution is not defined at its end


class OptimalTransport(NamedTuple):
    """Couples noise with data in each batch, such that paths are short [1].

    The cost of a pair is the squared distance of noise and data, and that of the contexts of which
    they came. Without the latter, noise would tell the context, and posteriors be biased [2].

    :param context_weight: weight of the contexts' distance, both distances being means over
        standardized entries; more keeps posteriors nearer to those of the independent coupling.
    :param regularization: entropy of the plan, in units of the mean cost.
    :param iterations: of the Sinkhorn algorithm.

    **References**

    1. *Improving and generalizing flow-based generative models with minibatch optimal transport*,
       Tong et al. (2024).
    2. *The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional
       Flow-Based Generation*, Cheng and Schwing (2025).
    """

    context_weight: float = 100.0
    regularization: float = 0.01
    iterations: int = 50

    def couple(self, rng_key: Array, noise: Array, variables: Array, context: Array) -> Array:
        """Noise for each event, drawn from the batch by the plan.

        :param rng_key: a key.
        :param noise: shape ``(batch, size)``.
        :param variables: shape ``(batch, size)``.
        :param context: shape ``(batch, condition_size)``.
        :return: rows of the noise, shape ``(batch, size)``.
        """
        context = (context - context.mean(0)) / (context.std(0) + 1e-6)
        cost = _distances(variables, noise)
        if context.shape[-1]:
            cost += self.context_weight * _distances(context, context)
        plan = self._plan(-cost / (self.regularization * _distances(variables, noise).mean()))
        return noise[random.categorical(rng_key, plan)]

    def _plan(self, logits: Array) -> Array:
        """Logarithm of the plan with equal sums of all rows and columns."""

        def balance(logits: Array, _: None) -> tuple[Array, None]:
            logits = jax.nn.log_softmax(logits, axis=0)
            return jax.nn.log_softmax(logits, axis=1), None

        return lax.scan(balance, logits, length=self.iterations)[0]


@final
class FlowMatching(ContinuousFlow):
    """Velocity field from noise to the variables along straight paths [1, 2].

    At time ``t`` the state is ``(1 - t) * noise + t * variables``: noise at 0, the variables at 1.

    :param size: number of inference variables.
    :param condition_size: length of the context; may be 0.
    :param widths: width of each block of :class:`ResidualMLP`, all equal.
    :param embedding_size: length of its embeddings of time and context.
    :param activation: its activation.
    :param alpha: times of training are ``u ** (1 + alpha)`` for uniform ``u``, of density
        proportional to ``t ** (-alpha / (1 + alpha))``: uniform at 0, ``2 t`` by default, which
        favours the end, where narrow posteriors form. The authors' code of [2] draws ``u ** (1 /
        (1 + exponent))``: there the default is an exponent of 1.
    :param optimal_transport: coupling of noise and data in a batch, ``None`` for none.
    :param solver: :class:`FixedStep` or :class:`Adaptive`.
    :param num_probes: size up to which the divergence is exact, see :class:`ContinuousFlow`.
    :param normal: whether a normal distribution is learned too, which the flow corrects, see
        :class:`ContinuousFlow`.
    :param rngs: random streams of the initial parameters.

    **References**

    1. *Flow Matching for Generative Modeling*, Lipman, Chen, Ben-Hamu, Nickel and Le (2023).
    2. *Flow Matching for Scalable Simulation-Based Inference*, Dax, Wildberger, Buchholz, Green,
       Macke and Schoelkopf (2023).

    **Example**

    >>> network = FlowMatching(2, 3, widths=(16,) * 2, rngs=nnx.Rngs(0))
    >>> draws, log_prob = network.sample_and_log_prob(random.key(0), jnp.zeros((5, 3)))
    >>> draws.shape, log_prob.shape
    ((5, 2), (5,))
    """

    def __init__(
        self,
        size: int,
        condition_size: int,
        *,
        widths: Sequence[int] = (256,) * 5,
        embedding_size: int = 32,
        activation: Callable[[Array], Array] = swish,
        alpha: float = -0.5,
        optimal_transport: OptimalTransport | None = None,
        solver: Solver = FixedStep(),  # noqa: B008
        num_probes: int = 32,
        normal: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        if alpha <= -1:
            raise ValueError(f"FlowMatching: expected alpha > -1, got {alpha}.")
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
        self.alpha = alpha
        self.optimal_transport = nnx.static(optimal_transport)

    def loss(self, rng_key: Array, variables: Array, context: Array) -> Array:
        """Mean squared error of the velocity, at one random time for each event."""
        time_key, noise_key, couple_key = random.split(rng_key, 3)
        normal_key = random.fold_in(rng_key, 3)
        batch, dtype = variables.shape[:-1], variables.dtype
        t = stratified(time_key, batch, dtype) ** (1 + self.alpha)
        noise = random.normal(noise_key, variables.shape, dtype)
        if self.optimal_transport is not None:
            rows = [x.reshape(-1, x.shape[-1]) for x in (noise, variables, context)]
            coupled = self.optimal_transport.couple(couple_key, *map(lax.stop_gradient, rows))
            noise = coupled.reshape(noise.shape)
        x = (1 - t[..., None]) * noise + t[..., None] * variables
        velocity = self.conditional_velocity(self.prediction(context, in_training=True))
        losses = jnp.mean((velocity(t, x) - (variables - noise)) ** 2, axis=-1)
        return losses + self.normal_loss(normal_key, variables, context)

    def score(self, t: Array, x: Array, context: Array) -> Array:
        """Gradient in ``x`` of the log density of the noisy variables at time ``t``.

        Times above .999 count as that: a standard deviation of .001 of noise is left.

        :param t: times from 0, pure noise, to 1, the variables themselves; shape ``(*batch,)``.
        :param x: noisy variables, shape ``(*batch, size)``.
        :param context: shape ``(*batch, condition_size)``. Batch axes broadcast.
        :raises ValueError: with optimal transport, under which the noise in ``x`` is not normal
            given the variables.
        """
        if self.optimal_transport is not None:
            raise ValueError(
                "FlowMatching.score: expected the independent coupling, got "
                f"{self.optimal_transport}; train with optimal_transport=None."
            )
        t = jnp.minimum(jnp.asarray(t, x.dtype), _LAST)
        return linear_path_score(t, x, self.velocity(t, x, context))

    def conditional_velocity(self, predict: Prediction) -> Velocity:
        def velocity(t: Array, x: Array) -> Array:
            data, noise = t[..., None], 1 - t[..., None]
            scale = lax.rsqrt(data**2 + noise**2)
            mixture = Mixture(data * scale, noise * scale)
            prediction = predict(x * scale, mixture)
            # x1 - x0 for x1 = data * x - noise * prediction, x0 = noise * x + data * prediction
            linear = (mixture.data - mixture.noise) * (x * scale)
            return linear - (mixture.data + mixture.noise) * prediction

        return velocity


def linear_path_score(t: Array, x: Array, velocity: Array) -> Array:
    """Score of ``(1 - t) * noise + t * data``, where noise is normal and independent of data.

    With ``v = E[data - noise | x]``, the expected noise is ``x - t v``, and the score is minus
    that over the noise's standard deviation ``1 - t`` (Tweedie's formula).

    :param t: times below 1, shape ``(*batch,)``.
    :param x: states, shape ``(*batch, size)``.
    :param velocity: at these, shape ``(*batch, size)``.
    """
    t = t[..., None]
    return (t * velocity - x) / (1 - t)


def _distances(a: Array, b: Array) -> Array:
    """Mean squared differences of rows, shape ``(len(a), len(b))``."""
    inner = jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
    squares = (a**2).sum(-1)[:, None] + (b**2).sum(-1) - 2 * inner
    return jnp.maximum(squares, 0) / a.shape[-1]
