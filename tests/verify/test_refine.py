# SPDX-License-Identifier: Apache-2.0
"""Long checks of refined posteriors against exact ones."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from scipy.special import logsumexp

import numpyro_amortized as npa
from tests import models
from tests.bimodal import TwoNormals, squared
from tests.conftest import FLOW

pytestmark = pytest.mark.verify


def draws_of(tree, name):
    values = tree["posterior"][name].values
    return values.reshape(-1, *values.shape[2:])


def test_conjugate_models_are_accepted(normal_mean, regression):
    for approximator in (normal_mean, regression):
        y = np.asarray(approximator.source.sample(random.key(8), 200)["y"])
        tree = npa.refine(random.key(0), approximator, {"y": y})
        assert (tree["sample_stats"]["step"] == "resampled").mean() >= 0.95


@pytest.mark.parametrize("shift", [0.0, 5.0, 50.0])
def test_ten_steps_of_training_end_at_the_exact_posterior(approximate, shift):
    """Three correlated latents; the data lie up to a hundred standard deviations off."""
    data = models.DESIGN, np.zeros(len(models.DESIGN))
    approximator = approximate(models.regression, *data, network=FLOW)
    approximator.fit(random.key(0), epochs=1, num_batches=10, progress_bar=False)
    y = (
        np.asarray(approximator.source.sample(random.key(3), 1)["y"])[0]
        + shift * models.DESIGN[:, 0]
    )
    tree = npa.refine(random.key(1), approximator, {"y": y}, num_samples=8000)
    stats = tree["sample_stats"].dataset
    assert stats["step"] != "unresolved"
    if shift == 50:
        assert stats["pareto_k"] > 0.7 and stats["ood_p_value"] < 0.01
    draws = np.column_stack([draws_of(tree, "intercept"), draws_of(tree, "slope")])
    exact = models.regression_posterior(y)
    sd = np.sqrt(np.diag(exact.covariance))
    # 8,000 effective draws: five standard errors of a mean, a deviation, and a correlation
    error = 5 / np.sqrt(8000)
    assert np.abs((draws.mean(0) - exact.mean) / sd).max() < error
    assert np.abs(draws.std(0) / sd - 1).max() < error
    correlation = exact.covariance / np.outer(sd, sd)
    assert np.abs(np.corrcoef(draws.T) - correlation).max() < error


@pytest.mark.parametrize("scale", [0.02, 0.05, 0.12])
def test_modes_get_their_weights(scale):
    simulator = npa.ModelSimulator(squared, x=np.zeros(()))
    network = partial(TwoNormals, scale=scale)
    approximator = npa.ContinuousApproximator(simulator, inference_network=network)
    approximator.fit(random.key(0), epochs=1, num_batches=2, progress_bar=False)
    shares = []
    for seed in range(10):
        tree = npa.refine(random.key(seed), approximator, {"x": 1.0}, num_samples=8000)
        assert tree["sample_stats"]["step"] != "unresolved"
        shares.append((draws_of(tree, "theta") > 0).mean())
    assert np.abs(np.array(shares) - 0.5).max() < 0.05
    # the chains change modes often enough that each run is worth 2,000 draws of the mode
    assert abs(np.mean(shares) - 0.5) < 5 * 0.5 / np.sqrt(10 * 2000)


def clusters(y):
    """Each observation belongs to one of two clusters, which are not inferred."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        member = numpyro.sample("member", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(jnp.where(member, mu, -1.0), 0.5), obs=y)


def test_discrete_latents_are_summed_out(approximate):
    y = np.array([0.8, -1.2, 1.1, -0.7, -0.9, -1.4])
    approximator = approximate(clusters, y, network=FLOW)
    approximator.fit(random.key(0), epochs=1, num_batches=10, progress_bar=False)
    tree = npa.refine(random.key(1), approximator, {"y": y}, num_samples=8000)
    assert tree["sample_stats"]["step"] != "unresolved"
    grid = np.linspace(-5, 5, 20_001)
    parts = [
        np.log(0.3) - ((y - grid[:, None]) / 0.5) ** 2 / 2,
        np.log(0.7) - ((y + 1) / 0.5) ** 2 / 2,
    ]
    log_density = logsumexp(np.broadcast_arrays(*parts), axis=0).sum(1) - grid**2 / 2
    density = np.exp(log_density - logsumexp(log_density))
    mean = (grid * density).sum()
    sd = np.sqrt((grid**2 * density).sum() - mean**2)
    mu = draws_of(tree, "mu")
    assert abs(mu.mean() - mean) < 5 * sd / np.sqrt(8000)
    # of a posterior with heavier tails than a normal one
    assert abs(mu.std() / sd - 1) < 0.05
