# SPDX-License-Identifier: Apache-2.0
"""Importance weights of amortized posteriors."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from scipy import stats

import numpyro_amortized as npa
from tests import models
from tests.conftest import FLOW, SETS


def log_evidence(y):
    """Of `normal_mean`: data of shape ``(..., n)`` have covariance I + 1."""
    n = y.shape[-1]
    return stats.multivariate_normal(np.zeros(n), np.eye(n) + 1).logpdf(y)


@pytest.fixture(scope="module")
def data(normal_mean):
    return np.asarray(normal_mean.source.sample(random.key(5), 50)["y"])


@pytest.fixture(scope="module")
def result(normal_mean, data):
    return npa.importance_sample(random.key(0), normal_mean, {"y": data}, 8000)


@pytest.mark.verify
def test_shapes(result, normal_mean, data):
    assert result.samples["mu"].shape == result.log_weights.shape == (50, 8000)
    for values in result[2:]:
        assert values.shape == (50,)
    assert result.resample(random.key(1), 30)["mu"].shape == (50, 30)
    one = npa.importance_sample(random.key(0), normal_mean, {"y": data[0]}, 300)
    assert one.samples["mu"].shape == one.log_weights.shape == (300,)
    assert one.pareto_k.shape == one.log_evidence.shape == ()
    assert one.resample(random.key(1), 7)["mu"].shape == (7,)


@pytest.mark.verify
def test_a_second_call_compiles_nothing(normal_mean, data, compilations):
    first = npa.importance_sample(random.key(0), normal_mean, {"y": data[:3]}, 400)
    first.resample(random.key(1), 20)
    before = len(compilations)
    second = npa.importance_sample(random.key(2), normal_mean, {"y": data[3:6]}, 400)
    second.resample(random.key(1), 20)
    assert len(compilations) == before


def test_weights_are_the_ratio_of_densities(result, normal_mean, data):
    mu = np.asarray(result.samples["mu"][0, :100])
    log_joint = stats.norm.logpdf(mu) + stats.norm.logpdf(data[0] - mu[:, None]).sum(-1)
    log_q = normal_mean.log_prob({"mu": mu, "y": data[0]})
    np.testing.assert_allclose(result.log_weights[0, :100], log_joint - log_q, atol=2e-3)
    total = np.exp(np.asarray(result.smoothed_log_weights)).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=1e-4)


def test_which_weights_can_be_trusted(result):
    trusted = result._replace(pareto_k=np.where(np.arange(50) < 25, 0.69, 0.71)).is_reliable
    assert trusted.shape == (50,) and trusted[:25].all()
    # where k-hat is too large, those that are worth 99 % of their number, which some are not
    ratios = np.exp(np.asarray(result.log_weights[25:] - result.log_evidence[25:, None]))
    is_even = (ratios**2).mean(-1) < 1 / 0.99
    np.testing.assert_array_equal(trusted[25:], is_even & (ratios.max(-1) <= 10))
    one_draw = result._replace(log_weights=result.log_weights[:, :1], pareto_k=np.full(50, np.inf))
    assert not one_draw.is_reliable.any()


def test_evidence_of_a_conjugate_model(result, data):
    se = np.asarray(result.log_evidence_se)
    errors = (np.asarray(result.log_evidence) - log_evidence(data)) / se
    assert se.max() <= 0.01
    # of 50 normal errors one is above 3 in one case of eight, above 3.7 in one of a hundred
    assert np.abs(errors).max() < 3.7
    assert (np.abs(errors) > 3).sum() <= 1
    # neither too small nor too large: the mean square of 50 errors is 1 +- 0.2
    assert 0.4 < (errors**2).mean() < 1.6


def test_resampled_draws_are_of_the_exact_posterior(result, data):
    draws = np.asarray(result.resample(random.key(3), 2000)["mu"])
    mean, sd = models.normal_mean_posterior(data)
    # 2,000 draws: the standard error of a mean is 0.022, of a standard deviation 0.016; resampling
    # adds less than half of that
    assert np.abs((draws.mean(1) - mean) / sd).max() < 5 * 0.022
    assert np.abs(draws.std(1) / sd - 1).max() < 5 * 0.016
    # in random order: no correlation between neighbours, of 100,000 pairs
    steps = (draws - draws.mean(1, keepdims=True)) / sd
    assert abs((steps[:, 1:] * steps[:, :-1]).mean()) < 5 * 1e5**-0.5


@pytest.mark.verify
def test_weights_repair_a_poor_approximator(approximate):
    """An approximator that is hardly trained gives the mean, the evidence, and warns of itself."""
    keep = np.array([True, False, True])
    approximator = approximate(models.masked, np.zeros(3), keep, network=FLOW)
    approximator.fit(random.key(0), epochs=1, num_batches=100, progress_bar=False)
    y = np.array([0.5, 100.0, 1.0])
    result = npa.importance_sample(random.key(1), approximator, {"y": y}, 4000)
    weights = np.exp(np.asarray(result.smoothed_log_weights))
    error = 5 * 3**-0.5 / np.sqrt(result.ess)
    assert abs(weights @ np.asarray(result.samples["mu"]) - 0.5) < error
    difference = result.log_evidence - log_evidence(y[keep])
    assert abs(difference) < 5 * result.log_evidence_se < 0.5


def noisy_mean(n, x=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("N", n):
        numpyro.sample("x", dist.Normal(mu, 1), obs=x)


@pytest.mark.verify
def test_sizes_that_vary(compilations):
    simulator = npa.ModelSimulator(noisy_mean, observed=("x",), sizes={"n": (2, 6)})
    approximator = npa.ContinuousApproximator(
        simulator, inference_network=FLOW, summary_network=SETS
    )
    approximator.fit(random.key(0), epochs=1, num_batches=100, progress_bar=False)
    x = np.random.default_rng(1).normal(size=(3, 4))
    result = npa.importance_sample(random.key(1), approximator, {"x": x}, 4000)
    difference = np.asarray(result.log_evidence) - log_evidence(x)
    assert (np.abs(difference) < 5 * np.asarray(result.log_evidence_se)).all()
    before = len(compilations)
    npa.importance_sample(random.key(2), approximator, {"x": x}, 4000)
    assert len(compilations) == before


def test_refusals(approximate):
    def fitted(*args, **kwargs):
        approximator = approximate(*args, **kwargs)
        approximator.fit(random.key(0), epochs=1, num_batches=2, progress_bar=False)
        return approximator

    partial = fitted(models.eight_schools, models.SIGMA, models.EFFECTS, sites=("mu", "tau"))
    with pytest.raises(ValueError, match=r"\['theta'\] are latent, but not inferred"):
        npa.importance_sample(random.key(0), partial, {"y": models.EFFECTS}, 100)
    bank = {"theta": random.normal(random.key(0), (50,)), "x": random.normal(random.key(1), (50,))}
    adapter = (
        npa.Adapter()
        .concatenate(["theta"], into="inference_variables")
        .concatenate(["x"], into="inference_conditions")
    )
    source = npa.OfflineDataset(bank)
    without = npa.ContinuousApproximator(source, adapter=adapter)
    with pytest.raises(TypeError, match="one of a NumPyro model"):
        npa.importance_sample(random.key(0), without, {"x": 0.0}, 100)
    untrained = approximate(models.normal_mean, np.zeros(3))
    with pytest.raises(RuntimeError, match="not trained"):
        npa.importance_sample(random.key(0), untrained, {"y": np.zeros(3)}, 100)
