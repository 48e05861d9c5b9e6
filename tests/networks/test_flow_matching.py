# SPDX-License-Identifier: Apache-2.0
"""What is particular to flow matching: times of training and the coupling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from scipy import integrate

from numpyro_amortized.networks.flow_matching import (
    FlowMatching,
    OptimalTransport,
    linear_path_score,
)

pytestmark = pytest.mark.verify  # compiling takes minutes

SMALL = {"widths": (16, 16), "embedding_size": 8}


@pytest.mark.parametrize("t", [0.0, 0.3, 0.99])
def test_score_of_a_normal(t):
    mean, scale = 0.7, 0.2
    variance = (1 - t) ** 2 + (t * scale) ** 2
    x = np.linspace(-3, 3, 50)[:, None]
    velocity = mean + (t * scale**2 - (1 - t)) / variance * (x - t * mean)
    expected = -(x - t * mean) / variance
    found = linear_path_score(np.float64(t)[None], x, velocity)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("alpha", [-0.8, -0.5, 0.0, 1.0])
def test_times_follow_the_power_law(alpha):
    flow = FlowMatching(1, 0, **SMALL, alpha=alpha, rngs=nnx.Rngs(0))
    x = random.normal(random.key(0), (100_000, 1))
    loss = jax.jit(flow.loss)(random.key(1), x, jnp.zeros((100_000, 0)))
    # a new network knows the standard normal: what its velocity cannot explain is 1 / s(t)**2
    expected = integrate.quad(lambda u: 1 / (_squares(u ** (1 + alpha))), 0, 1)[0]
    assert abs(loss.mean() - expected) < 4 * loss.std() / 100_000**0.5


def _squares(t: float) -> float:
    return t**2 + (1 - t) ** 2


@pytest.fixture
def pairs():
    """Noise, variables that are little but their context, and the context."""
    noise, context, error = random.normal(random.key(0), (3, 400, 1))
    return noise, 0.95 * context + 0.3 * error, context


def _correlation(a, b) -> float:
    return float(np.corrcoef(a[:, 0], b[:, 0])[0, 1])


def test_transport_without_context_is_monotone(pairs):
    noise, variables, _ = pairs
    coupled = OptimalTransport().couple(random.key(1), noise, variables, jnp.zeros((400, 0)))
    assert _correlation(coupled, variables) > 0.98  # in one dimension the optimal map is monotone
    assert np.isin(coupled, noise).all()
    # every row of the noise is used about once
    assert abs(coupled.mean() - noise.mean()) < 0.05 and abs(coupled.std() / noise.std() - 1) < 0.05


def test_transport_leaves_noise_independent_of_the_context(pairs):
    noise, variables, context = pairs
    coupled = OptimalTransport().couple(random.key(1), noise, variables, context)
    # the standard error of a correlation of 400 pairs is .05
    assert abs(_correlation(coupled, context)) < 0.15
    # and yet the paths of equal contexts are shorter
    residual = variables - 0.95 * context
    assert _correlation(coupled, residual) > 0.5
    blind = OptimalTransport(context_weight=0.0).couple(random.key(1), noise, variables, context)
    assert _correlation(blind, context) > 0.9


def test_loss_with_transport():
    flow = FlowMatching(2, 1, **SMALL, optimal_transport=OptimalTransport(), rngs=nnx.Rngs(0))
    x, context = jnp.ones((6, 2)), jnp.ones((6, 1))  # equal contexts have no scale
    loss = jax.jit(flow.loss)(random.key(0), x, context)
    assert loss.shape == (6,) and jnp.isfinite(loss).all()
    assert flow.loss(random.key(0), x.reshape(2, 3, 2), context.reshape(2, 3, 1)).shape == (2, 3)
    with pytest.raises(ValueError, match="independent coupling"):
        flow.score(0.5, x, context)


def test_alpha_is_above_minus_one():
    with pytest.raises(ValueError, match="expected alpha > -1, got -1"):
        FlowMatching(1, 1, alpha=-1, rngs=nnx.Rngs(0))
