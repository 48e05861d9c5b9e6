# SPDX-License-Identifier: Apache-2.0
"""The amortized posterior as a guide."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax import random
from numpyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
    psis_diagnostic,
)
from numpyro.infer.autoguide import AutoGuide
from scipy import stats

import numpyro_amortized as npa
from tests import models

pytestmark = pytest.mark.usefixtures("unoptimized")
Y = np.linspace(-1, 2, 6).astype(np.float32)
ARGS = (models.DESIGN, Y)


@pytest.fixture
def guide(regression):
    return npa.AmortizedGuide(models.regression, regression)


@pytest.fixture
def bound(regression):
    return npa.AmortizedGuide(models.regression, regression, observed={"y": Y})


def log_evidence():
    X = np.column_stack([np.ones(6), models.DESIGN])
    covariance = X @ np.diag([4.0, 1, 1]) @ X.T + models.NOISE**2 * np.eye(6)
    return stats.multivariate_normal(X[:, 0], covariance).logpdf(Y)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO])
def test_elbos_are_just_below_the_evidence(guide, elbo):
    assert isinstance(guide, AutoGuide)
    loss = elbo(num_particles=500)
    gap = loss.loss(random.key(1), {}, models.regression, guide, *ARGS) + log_evidence()
    # KL of a trained network; the Monte Carlo error of 500 particles is about 0.3 / sqrt(500)
    assert -0.07 < gap < 0.2


def test_tuning_by_svi(guide, regression):
    before = nnx.to_pure_dict(nnx.split(regression.networks, nnx.Param, ...)[1])
    copies = jax.tree.map(np.array, before)
    svi = SVI(models.regression, guide, optax.adam(1e-3), Trace_ELBO(num_particles=8))
    result = svi.run(random.key(0), 20, *ARGS, progress_bar=False)
    assert set(result.params) == {"auto$params"}
    changes = jax.tree.map(lambda x, y: np.abs(x - y).max(), result.params["auto$params"], copies)
    assert max(jax.tree.leaves(changes)) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, before, copies)  # the approximator stays


def test_part_of_the_networks_or_none(regression):
    frozen = npa.AmortizedGuide(models.regression, regression, trainable=False)
    svi = SVI(models.regression, frozen, optax.adam(1e-3), Trace_ELBO())
    assert svi.get_params(svi.init(random.key(0), *ARGS)) == {}


def test_draws_of_a_bound_guide(bound):
    exact = models.regression_posterior(Y)
    draws = bound.sample_posterior(random.key(0), {}, sample_shape=(4000,))
    latents = np.column_stack([draws["intercept"], draws["slope"]])
    sd = np.sqrt(np.diag(exact.covariance))
    # a tenth of a standard deviation for training, four standard errors of 4,000 draws
    assert (np.abs(latents.mean(0) - exact.mean) / sd < 0.1 + 4 * 4000**-0.5).all()
    median = bound.median({})
    medians = np.append(median["intercept"], median["slope"])
    assert (np.abs(medians - exact.mean) / sd < 0.2).all()
    quantiles = bound.quantiles({}, [0.1, 0.9])
    assert quantiles["slope"].shape == (2, 2)


def test_predictive_without_data(bound):
    predictive = Predictive(models.regression, guide=bound, params={}, num_samples=2000)
    draws = predictive(random.key(0), models.DESIGN, None)
    exact = models.regression_posterior(Y)
    X = np.column_stack([np.ones(6), models.DESIGN])
    # sds of predictions are below 0.8: four standard errors, and as much again for training
    assert np.abs(draws["y"].mean(0) - X @ exact.mean).max() < 8 * 0.8 * 2000**-0.5


def test_psis_diagnostic_trusts_it(guide):
    k = psis_diagnostic(random.key(0), {}, models.regression, guide, *ARGS, num_particles=1000)
    assert k < 0.7


def test_starts_of_every_chain(bound):
    starts = bound.init_params(random.key(0), 3, *ARGS)
    assert starts["slope"].shape == (3, 2) and len(np.unique(starts["intercept"])) == 3
    mcmc = MCMC(
        NUTS(models.regression),
        num_warmup=5,
        num_samples=5,
        num_chains=3,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(random.key(1), *ARGS, init_params=starts)
    assert np.isfinite(mcmc.get_samples()["slope"]).all()


def test_errors(guide, regression):
    with pytest.raises(ValueError, match=r"observes no \['y'\].*bind"):
        guide.sample_posterior(random.key(0), {}, models.DESIGN, None)
    with pytest.raises(ValueError, match="Bind it"):
        guide.median({})
    with pytest.raises(ValueError, match="one data set, got a batch of 2"):
        npa.AmortizedGuide(models.regression, regression, observed={"y": np.stack([Y, Y])})
