# SPDX-License-Identifier: Apache-2.0
"""Trained approximators against exact posteriors.

The networks are small and trained for seconds: the tolerances allow a tenth of a posterior standard
deviation for that, plus the Monte Carlo error that each comment states.
"""

import numpy as np
import pytest
from jax import random
from scipy import stats

from benchmarks.c2st import c2st
from tests import models
from tests.conftest import optimized

NUM_SETS, NUM_DRAWS = 500, 399


@pytest.fixture(scope="module")
def prior_predictive(normal_mean, regression):
    """Latents, data and draws for 500 data sets of either model."""

    def simulate(approximator):
        truth = approximator.source.sample(random.key(10), NUM_SETS)
        draws = approximator.sample(random.key(11), NUM_DRAWS, {"y": truth["y"]})
        names = approximator.inferred_sites
        vectors = (
            np.concatenate([np.reshape(a[n], (*lead, -1)) for n in names], axis=-1)
            for a, lead in ((truth, (NUM_SETS,)), (draws, (NUM_SETS, NUM_DRAWS)))
        )
        return (*vectors, np.asarray(truth["y"]))

    with optimized():
        return {"normal_mean": simulate(normal_mean), "regression": simulate(regression)}


def exact(name, y) -> models.Gaussian:
    if name == "regression":
        return models.regression_posterior(y)
    mean, sd = models.normal_mean_posterior(y)
    return models.Gaussian(np.atleast_1d(mean), np.array([[sd**2]]))


MODELS = pytest.mark.parametrize("name", ["normal_mean", "regression"])


@MODELS
def test_moments(prior_predictive, name):
    _, draws, data = prior_predictive[name]
    posteriors = [exact(name, y) for y in data]
    means = np.stack([p.mean for p in posteriors])
    sd = np.sqrt(np.diag(posteriors[0].covariance))
    errors = (draws.mean(1) - means) / sd
    # root mean square over data sets; Monte Carlo adds 1 / sqrt(399) = 0.05 in quadrature
    assert (np.sqrt((errors**2).mean(0)) < 0.15).all()
    # one sd has a Monte Carlo error of 1 / sqrt(2 * 399) = 0.035
    ratios = draws.std(1) / sd
    assert (np.abs(ratios.mean(0) - 1) < 0.05).all()
    assert (np.quantile(np.abs(ratios - 1), 0.9, axis=0) < 0.2).all()


@MODELS
def test_simulation_based_calibration(prior_predictive, name):
    truth, draws, _ = prior_predictive[name]
    ranks = (draws < truth[:, None]).sum(1)  # uniform on 0, ..., 399
    p_values = []
    for column in ranks.T:
        counts = np.bincount(column // 20, minlength=20)
        p_values.append(stats.chisquare(counts).pvalue)
    # Holm's correction: the smallest of m p-values against 0.01 / m, the next 0.01 / (m - 1)
    thresholds = 0.01 / np.arange(len(p_values), 0, -1)
    assert (np.sort(p_values) > thresholds).all(), p_values


@MODELS
def test_log_density(request, prior_predictive, name):
    approximator = request.getfixturevalue(name)
    _, draws, data = prior_predictive[name]
    y, at = data[:50], draws[:50, :40]
    latents = {"mu": at[..., 0]}
    if name == "regression":
        latents = {"intercept": at[..., 0], "slope": at[..., 1:]}
    log_q = np.asarray(approximator.log_prob(latents | {"y": y}))
    log_p = np.stack(
        [
            stats.multivariate_normal(*exact(name, one)).logpdf(points)
            for one, points in zip(y, at, strict=True)
        ]
    )
    # at draws of q the mean of log q - log p is KL(q | p) >= 0, small after training
    assert abs((log_q - log_p).mean()) < 0.05
    assert np.quantile(np.abs(log_q - log_p), 0.9) < 0.3


@pytest.mark.parametrize(
    "name", ["normal_mean", pytest.param("regression", marks=pytest.mark.verify)]
)
def test_classifier_cannot_tell_draws_from_the_exact_posterior(request, prior_predictive, name):
    approximator = request.getfixturevalue(name)
    y = prior_predictive[name][2][0]
    draws = approximator.sample(random.key(12), 2000, {"y": y})
    ours = np.column_stack([np.asarray(draws[n]) for n in approximator.inferred_sites])
    posterior = exact(name, y)
    rng = np.random.default_rng(0)
    reference = rng.multivariate_normal(posterior.mean, posterior.covariance, size=2000)
    # with 4,000 points the accuracy of guessing is 0.5 +- 0.008
    assert c2st(reference, ours) < 0.55
