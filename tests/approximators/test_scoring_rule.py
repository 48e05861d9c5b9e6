# SPDX-License-Identifier: Apache-2.0
"""Estimates against analytic posteriors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from scipy import stats

import numpyro_amortized as npa
from numpyro_amortized import scoring_rules
from numpyro_amortized.networks import MLP
from tests.conftest import optimized

NOISE, LEVELS = 0.5, (0.1, 0.5, 0.9)
RULES = {
    "mean": scoring_rules.Mean(),
    "median": scoring_rules.Median(),
    "quantiles": scoring_rules.Quantiles(LEVELS),
    "normal": scoring_rules.MultivariateNormal(),
}


def log_normal(y):
    """The posterior of log(rate) is normal, with mean 0.8 y and variance 0.2."""
    rate = numpyro.sample("rate", dist.LogNormal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.log(rate), NOISE), obs=y)


@pytest.fixture(scope="module")
def estimator():
    approximator = npa.ScoringRuleApproximator(
        npa.ModelSimulator(log_normal, 0.0),
        scoring_rules=RULES,
        subnet=partial(MLP, widths=(64, 64)),
    )
    with optimized():
        approximator.fit(random.key(0), epochs=20, progress_bar=False)
    return approximator


@pytest.mark.verify
def test_estimates_are_those_of_the_log_normal_posterior(estimator):
    y = np.linspace(-1.5, 1.5, 41)
    exact = stats.lognorm(s=0.2**0.5, scale=np.exp(0.8 * y))
    found = estimator.estimate({"y": y})["rate"]
    assert {n: set(heads) for n, heads in found.items()} == {
        "mean": {"value"},
        "median": {"value"},
        "quantiles": {"0.1", "0.5", "0.9"},
        "normal": {"mean", "scale_tril"},
    }
    sd = exact.std()
    for level in LEVELS:
        error = np.abs(found["quantiles"][str(level)] - exact.ppf(level)) / sd
        assert error.mean() < 0.05, (level, error.mean())
    assert (np.abs(found["median"]["value"] - exact.median()) / sd).mean() < 0.05
    # the mean of the site and not the exponential of the mean log, which is 0.20 sd less
    error = np.abs(found["mean"]["value"] - exact.mean()) / sd
    assert error.mean() < 0.08, error.mean()


@pytest.mark.verify
def test_groups_and_shapes(estimator):
    by_site = estimator.estimate({"y": 0.3})
    by_score = estimator.estimate({"y": 0.3}, groupby="score")
    assert by_site["rate"]["mean"]["value"].shape == ()
    assert by_score["mean"]["rate"]["value"] == by_site["rate"]["mean"]["value"]
    with pytest.raises(ValueError, match="groupby: expected"):
        estimator.estimate({"y": 0.3}, groupby="head")


@pytest.mark.verify
def test_draws_and_densities_are_those_of_the_log_normal_posterior(estimator):
    y = np.linspace(-1.5, 1.5, 11)
    mean, sd = 0.8 * y, 0.2**0.5
    draws = estimator.sample(random.key(1), 4000, {"y": y})["rate"]
    logs = np.log(draws)
    # Monte Carlo errors of 4,000 draws: 0.016 sd of the mean, 1.1 % of the sd
    assert (np.abs(logs.mean(1) - mean) / sd).mean() < 0.08
    assert np.abs(logs.std(1) / sd - 1).mean() < 0.05
    exact = stats.lognorm(s=sd, scale=np.exp(mean)[:, None]).logpdf(draws)
    found = estimator.log_prob({"rate": draws, "y": y})
    assert found.shape == (11, 4000)
    # the divergence of the two, in nats
    assert np.abs((exact - found).mean(1)).max() < 0.02
    again, log_q = estimator.sample_and_log_prob(random.key(1), 5, {"y": 0.3})
    np.testing.assert_allclose(log_q, estimator.log_prob(again | {"y": 0.3}), atol=1e-4)


@pytest.mark.verify
def test_posterior_of_a_mixture():
    """The same density as a NumPyro distribution, of the network's vector."""
    simulator = npa.ModelSimulator(log_normal, 0.0)
    rules = {"mixture": scoring_rules.GaussianMixture(3)}
    approximator = npa.ScoringRuleApproximator(simulator, scoring_rules=rules)
    approximator.fit(random.key(0), epochs=1, num_batches=2, progress_bar=False)
    posterior = approximator.posterior({"y": 0.3})
    vector = jnp.linspace(-8, 8, 2001)[:, None]
    density = jnp.exp(jax.jit(posterior.log_prob)(vector))
    np.testing.assert_allclose(density.sum() * (vector[1, 0] - vector[0, 0]), 1, atol=1e-3)
    rate = jax.jit(posterior.constrain)(vector)["rate"]
    log_q = approximator.log_prob({"rate": rate, "y": 0.3})
    # here the network's variable is log(rate)
    np.testing.assert_allclose(log_q, posterior.log_prob(vector) - jnp.log(rate), atol=1e-4)


def test_without_a_parametric_rule_there_is_no_density():
    simulator = npa.ModelSimulator(log_normal, 0.0)
    approximator = npa.ScoringRuleApproximator(
        simulator, scoring_rules={"mean": scoring_rules.Mean()}
    )
    approximator.fit(random.key(0), epochs=1, num_batches=1, progress_bar=False)
    for call in (
        lambda: approximator.sample(random.key(0), 2, {"y": 0.3}),
        lambda: approximator.log_prob({"rate": 1.0, "y": 0.3}),
        lambda: approximator.posterior({"y": 0.3}),
    ):
        with pytest.raises(ValueError, match=r"expected a parametric rule.*'mean'"):
            call()
