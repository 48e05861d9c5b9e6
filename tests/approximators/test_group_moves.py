# SPDX-License-Identifier: Apache-2.0
"""Moves of draws given many groups, beside posteriors that are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.approximators.group_moves import group_density, moved

NUM_SAMPLES = 2000
COVARIANCE = np.array([[0.04, 0.03], [0.03, 0.09]])


def test_draws_that_are_off_become_right():
    mean = jnp.array([1.0, -0.5])
    target = dist.MultivariateNormal(mean, COVARIANCE)
    root = np.linalg.cholesky(COVARIANCE)
    start = mean + (0.7 + 1.3 * random.normal(random.key(0), (NUM_SAMPLES, 2))) @ root.T
    draws = jax.jit(partial(moved, log_density=target.log_prob, num_moves=80))(
        random.key(1), draws=start
    )
    whitened = np.linalg.solve(root, np.asarray(draws - mean).T)
    # four standard errors of a mean, and of a second moment, of independent normal draws
    assert np.abs(whitened.mean(1)).max() < 4 / NUM_SAMPLES**0.5
    assert np.abs(np.cov(whitened) - np.eye(2)).max() < 4 * (2 / NUM_SAMPLES) ** 0.5


def one_group(y):
    scale = numpyro.sample("scale", dist.LogNormal(0, 1))
    numpyro.sample("y", dist.Normal(0, scale).expand([2]).to_event(1), obs=y)


def test_density_given_all_groups():
    approximator = npa.CompositionalApproximator(npa.ModelSimulator(one_group, np.zeros(2)))
    density = approximator.vector_density(approximator.predictive)
    groups = {"y": random.normal(random.key(0), (7, 2))}
    scales = np.array([0.3, 1.0, 2.5], np.float32)
    forward = jax.jit(jax.vmap(approximator.adapter.forward))
    vectors = forward({"scale": scales})["inference_variables"]
    found = jax.jit(jax.vmap(group_density(density, groups)))(vectors)
    # the density of log(scale), which the networks' space is up to a linear map
    prior = dist.Normal(0, 1).log_prob(np.log(scales))
    likelihood = dist.Normal(0, scales[:, None]).log_prob(groups["y"].ravel()).sum(1)
    expected = prior + likelihood
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-4, atol=1e-4)


def two_kinds(y):
    kind = numpyro.sample("kind", dist.Bernoulli(0.5))
    mu = numpyro.sample("mu", dist.Normal(kind, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def test_the_prior_must_count_once():
    approximator = npa.CompositionalApproximator(npa.ModelSimulator(two_kinds, 0.0))
    with pytest.raises(ValueError, match=r"priors of \['mu'\] that do not depend on latents left"):
        approximator.compositional_sample(random.key(0), 4, {"y": np.zeros(3)}, num_moves=2)


def test_refusals():
    def simulate(rng_key):
        return {"mu": random.normal(rng_key), "y": random.normal(rng_key)}

    simulator = npa.LambdaSimulator(simulate)
    adapter = npa.Adapter().concatenate(["mu"], into="inference_variables")
    adapter = adapter.concatenate(["y"], into="inference_conditions")
    approximator = npa.CompositionalApproximator(simulator, adapter=adapter)
    with pytest.raises(TypeError, match="expected an approximator of a NumPyro model"):
        approximator.compositional_sample(random.key(0), 4, {"y": np.zeros(3)}, num_moves=2)
