# SPDX-License-Identifier: Apache-2.0
"""Estimates against analytic posteriors."""

from functools import partial

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
from tests.conftest import optimizations

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
    with optimizations(True):
        approximator.fit(random.key(0), epochs=40, progress_bar=False)
    return approximator


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


def test_groups_and_shapes(estimator):
    by_site = estimator.estimate({"y": 0.3})
    by_score = estimator.estimate({"y": 0.3}, groupby="score")
    assert by_site["rate"]["mean"]["value"].shape == ()
    assert by_score["mean"]["rate"]["value"] == by_site["rate"]["mean"]["value"]
    with pytest.raises(ValueError, match="groupby: expected"):
        estimator.estimate({"y": 0.3}, groupby="head")
