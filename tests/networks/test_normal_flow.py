# SPDX-License-Identifier: Apache-2.0
"""Flows that correct a normal distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random

from numpyro_amortized.networks import DiffusionModel, FlowMatching
from tests.networks.test_coupling_flow import perturbed


def linear(t):
    """Shares of data and noise."""
    return t, 1 - t


def circular(t):
    return np.sin(np.pi / 2 * t), np.cos(np.pi / 2 * t)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        pytest.param(DiffusionModel, circular, marks=pytest.mark.verify),
        pytest.param(FlowMatching, linear),
    ],
)
@pytest.mark.verify
def test_without_correction_it_is_the_normal_distribution(kind, path):
    """What the networks predict is zero at first."""
    network = kind(2, 3, widths=(4,), normal=True, rngs=nnx.Rngs(0))
    network.normal = perturbed(network.normal, 0.05)
    contexts = random.normal(random.key(0), (4, 3))
    estimates = network.normal.estimates(contexts)
    mean = estimates["mean"]
    covariance = estimates["scale_tril"] @ jnp.swapaxes(estimates["scale_tril"], -1, -2)
    assert jnp.abs(covariance - jnp.eye(2)).max() > 0.05

    x = network.normal.sample(random.key(1), contexts)
    log_q = jax.jit(network.log_prob)(x, contexts)
    # 50 evaluations of the velocity
    np.testing.assert_allclose(log_q, network.normal.log_prob(x, contexts), atol=2e-3)

    for t in (0.25, 0.67, 0.98):
        data, noise = path(t)
        noisy = data**2 * covariance + noise**2 * jnp.eye(2)
        exact = -jnp.linalg.solve(noisy, (x - data * mean)[..., None])[..., 0]
        found = network.score(jnp.full(4, t), x, contexts)
        np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.verify
def test_its_loss_trains_the_normal_distribution():
    plain = DiffusionModel(2, 3, widths=(4,), rngs=nnx.Rngs(0))
    network = DiffusionModel(2, 3, widths=(4,), normal=True, rngs=nnx.Rngs(0))
    x, contexts = random.normal(random.key(1), (4, 2)), jnp.ones((4, 3))
    assert plain.normal is None
    graphdef, state = nnx.split(network)

    def total(state):
        return nnx.merge(graphdef, state).loss(random.key(0), x, contexts).sum()

    def own(state):
        return nnx.merge(graphdef, state).normal.loss(random.key(0), x, contexts).sum()

    slopes, alone = jax.jit(lambda s: (jax.grad(total)(s), jax.grad(own)(s)))(state)
    # the normal distribution learns from its own loss alone
    jax.tree.map(np.testing.assert_allclose, slopes["normal"], alone["normal"])
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(alone["normal"])) > 0.1
    assert float(jnp.abs(slopes["network"]["output"]["bias"][...]).max()) > 0
