# SPDX-License-Identifier: Apache-2.0
"""What is particular to diffusion models: noise levels of training and the stochastic sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from scipy import stats

from numpyro_amortized.networks.diffusion import DiffusionModel
from numpyro_amortized.networks.ode import HEUN, FixedStep
from tests.networks import mixture

pytestmark = pytest.mark.verify  # compiling takes minutes

SMALL = {"widths": (16, 16), "embedding_size": 8}


def test_loss_is_the_same_at_all_levels_before_training():
    x = random.normal(random.key(0), (50_000, 1))
    for mean in (-5.0, -1.2, 3.0):
        flow = DiffusionModel(1, 0, **SMALL, noise_mean=mean, noise_std=0.1, rngs=nnx.Rngs(0))
        loss = jax.jit(flow.loss)(random.key(1), x, jnp.zeros((50_000, 0)))
        # the mean of squared standard normals
        assert abs(loss.mean() - 1) < 4 * (2 / 50_000) ** 0.5


class Spy(nnx.Module):
    """Errs by the level where the variables are zero."""

    def condition(self, context):
        return None

    def __call__(self, x, level, conditioning):
        return x * jnp.exp(-level)[..., None] + level[..., None]


def test_levels_of_training():
    flow = DiffusionModel(1, 0, **SMALL, noise_mean=-2.0, noise_std=0.4, rngs=nnx.Rngs(0))
    flow.network = Spy()
    loss = flow.loss(random.key(0), jnp.zeros((4000, 1)), jnp.zeros((4000, 0)))
    # all levels are below zero; they are spread evenly, and so fit better than random ones
    levels = -np.sqrt(loss)
    assert stats.kstest(levels, stats.norm(-2.0, 0.4).cdf).pvalue > 0.05


@pytest.mark.parametrize("churn", [0.0, 20.0, 1e6])
def test_stochastic_draws_of_the_exact_network(churn):
    flow = mixture.exact(DiffusionModel(1, 1, **SMALL, rngs=nnx.Rngs(0)))
    contexts = jnp.full((5000, 1), 0.5)
    draws = flow.stochastic_sample(random.key(0), contexts, churn=churn, steps=128)
    expected = mixture.draw(random.key(1), contexts)
    assert stats.ks_2samp(draws[:, 0], expected[:, 0]).pvalue > 1e-3


def test_without_churn_it_is_the_sampler_of_heun():
    flow = mixture.exact(DiffusionModel(1, 1, **SMALL, rngs=nnx.Rngs(0)))
    flow.solver = nnx.static(FixedStep(steps=32, scheme=HEUN))
    contexts, rng_key = jnp.full((50, 1), 0.5), random.key(0)
    draws = flow.stochastic_sample(rng_key, contexts, churn=0.0, steps=32)
    base = random.normal(random.split(rng_key)[0], (50, 1))
    np.testing.assert_allclose(draws, flow.transport(base, contexts)[0], rtol=1e-4, atol=1e-4)


def test_stochastic_sample_is_a_function_of_the_key(compilations):
    flow = DiffusionModel(2, 1, **SMALL, rngs=nnx.Rngs(0))
    sample, contexts = jax.jit(flow.stochastic_sample), jnp.ones((3, 4, 1))
    first, second = random.key(0), random.key(1)
    draws = sample(first, contexts)
    assert draws.shape == (3, 4, 2)
    before = len(compilations)
    again, other = sample(first, contexts), sample(second, contexts)
    assert len(compilations) == before
    np.testing.assert_array_equal(draws, again)
    assert not np.array_equal(draws, other)


def test_spread_of_levels_is_positive():
    with pytest.raises(ValueError, match="expected noise_std > 0, got 0"):
        DiffusionModel(1, 1, noise_std=0, rngs=nnx.Rngs(0))
