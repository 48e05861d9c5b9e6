# SPDX-License-Identifier: Apache-2.0
"""Long checks of guides against exact posteriors."""

import numpy as np
import pytest
from jax import random
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import NeuTraReparam

import numpyro_amortized as npa
from tests import models
from tests.conftest import FLOW

pytestmark = pytest.mark.verify


def test_the_flow_takes_nuts_to_the_exact_posterior(approximate):
    """Of a network that has hardly been trained: NUTS corrects what it lacks."""
    approximator = approximate(models.regression, models.DESIGN, np.zeros(6), network=FLOW)
    approximator.fit(random.key(0), epochs=1, num_batches=50, progress_bar=False)
    y = np.asarray(approximator.source.sample(random.key(3), 1)["y"])[0]
    guide = npa.AmortizedGuide(models.regression, approximator, observed={"y": y})
    neutra = NeuTraReparam(guide, {})
    mcmc = MCMC(
        NUTS(neutra.reparam(models.regression)),
        num_warmup=500,
        num_samples=2000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(random.key(1), models.DESIGN, y)
    draws = neutra.transform_sample(mcmc.get_samples()["auto_shared_latent"])
    latents = np.column_stack([draws["intercept"], draws["slope"]])
    exact = models.regression_posterior(y)
    sd = np.sqrt(np.diag(exact.covariance))
    # 8,000 draws, of which a quarter is effective: five standard errors
    error = 5 / np.sqrt(2000)
    assert np.abs((latents.mean(0) - exact.mean) / sd).max() < error
    assert np.abs(latents.std(0) / sd - 1).max() < error
