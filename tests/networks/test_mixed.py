# SPDX-License-Identifier: Apache-2.0
"""Mixed densities: total probability, draws, order, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from scipy.special import log_ndtr

from numpyro_amortized.adapters.parts import Category, Count, Numbers
from numpyro_amortized.networks import CouplingFlow, Discretized, Mixed
from numpyro_amortized.networks.mixed import _log_mass
from tests.networks.test_coupling_flow import perturbed

FLOW = partial(CouplingFlow, depth=1, widths=(16,))
COUNT = Count(0.0, float("inf"), 3.0, 2.0)
CONTEXT = jnp.array([0.3, -1.2])


def mixed(*parts):
    network = Mixed(sum(part.size for part in parts), 2, parts=parts, flow=FLOW, rngs=nnx.Rngs(1))
    return perturbed(network, 0.2)


@pytest.mark.verify
def test_total_probability_is_one():
    network = mixed(Category(3), Numbers(1), Count(0, 6.0, 3.0, 2.0))
    x = jnp.linspace(-15, 15, 1501)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(3.0), x, jnp.arange(7.0), indexing="ij"), -1)
    total = jnp.exp(jax.jit(network.log_prob)(grid, CONTEXT)).sum() * (x[1] - x[0])
    np.testing.assert_allclose(total, 1, atol=1e-3)


@pytest.mark.parametrize(
    "part", [Category(4), COUNT, pytest.param(Count(-2.0, 5.0, 1.0, 2.0), marks=pytest.mark.verify)]
)
def test_draws_have_the_probabilities(part):
    network = mixed(part)
    draws = network.sample(random.key(0), jnp.broadcast_to(CONTEXT, (20_000, 2)))
    values, counts = np.unique(np.asarray(draws), return_counts=True)
    expected = np.exp(network.log_prob(values[:, None], CONTEXT))
    # five standard errors of a share of 20,000 draws
    assert (np.abs(counts / 20_000 - expected) < 5 * np.sqrt(0.25 / 20_000)).all()


@pytest.mark.verify
def test_parts_add_up_and_later_ones_are_given_the_earlier():
    network = mixed(Category(3), COUNT, Numbers(2))
    x = jnp.array([[2.0, 4, 0.3, -0.1], [0.0, 1, 0.3, -0.1]])
    terms = [network.partial_log_prob(x[:, :n], CONTEXT, i, i + 1) for i, n in enumerate((1, 2, 4))]
    np.testing.assert_allclose(sum(terms), network.log_prob(x, CONTEXT), rtol=1e-5, atol=1e-5)
    assert abs(terms[2][0] - terms[2][1]) > 1e-3
    np.testing.assert_allclose(
        network.loss(random.key(0), x, CONTEXT), -network.log_prob(x, CONTEXT), rtol=1e-5
    )


def test_context_broadcasts():
    network = mixed(Category(3), Numbers(1))
    x, contexts = jnp.array([[1.0, 0.2], [2.0, 0.1], [0.0, -1.0]]), jnp.ones((4, 1, 2))
    contexts *= jnp.arange(4)[:, None, None]
    log_prob = jax.jit(network.log_prob)
    together = log_prob(x, contexts)
    one_by_one = jnp.stack([log_prob(x, context) for context in contexts[:, 0]])
    assert together.shape == (4, 3)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_log_mass_in_both_tails_and_its_gradient():
    low = jnp.array([-jnp.inf, -20.0, -0.5, 0.2, 12.0, 3.0])
    high = jnp.array([-1.0, -19.5, 0.5, jnp.inf, 12.5, jnp.inf])
    # in double precision, in the nearer tail
    a, b = (np.asarray(x, np.float64) for x in (low, high))
    flip = a + b > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    expected = log_ndtr(b) + np.log1p(-np.exp(log_ndtr(a) - log_ndtr(b)))
    np.testing.assert_allclose(_log_mass(low, high), expected, rtol=1e-5, atol=1e-5)
    slopes = jax.jit(jax.grad(lambda a, b: _log_mass(a, b).sum(), argnums=(0, 1)))(low, high)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)


@pytest.mark.verify
def test_gradients_of_far_counts_are_finite():
    network = Discretized(COUNT, 2, flow=FLOW, rngs=nnx.Rngs(0))
    counts = jnp.array([[0.0], [3.0], [500.0], [100_000.0]])

    @jax.jit
    @jax.vmap
    def both(x):
        return jax.value_and_grad(lambda context: network.log_prob(x, context))(CONTEXT)

    values, slopes = both(counts)
    assert jnp.isfinite(values).all() and jnp.isfinite(slopes).all()


def test_wrong_parts():
    with pytest.raises(ValueError, match="expected parts of 3 variables"):
        Mixed(3, 2, parts=(Category(2), Numbers(1)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="ready network"):
        ready = CouplingFlow(1, 2, depth=1, rngs=nnx.Rngs(0))
        Mixed(2, 2, parts=(Category(2), Numbers(1)), flow=ready, rngs=nnx.Rngs(0))
