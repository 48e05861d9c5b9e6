# SPDX-License-Identifier: Apache-2.0
"""Long checks of guides against exact posteriors."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, psis_diagnostic
from numpyro.infer.reparam import NeuTraReparam

import numpyro_amortized as npa
from benchmarks.c2st import c2st
from tests import models
from tests.conftest import FLOW

pytestmark = pytest.mark.verify
NUM_DRAWS = 5000
TIMES = np.linspace(0.2, 3, 8)


def decay(t, y=None):
    height = numpyro.sample("height", dist.LogNormal(0.5, 0.5))
    rate = numpyro.sample("rate", dist.LogNormal(0, 0.5))
    with numpyro.plate("time", len(t)):
        numpyro.sample("y", dist.Normal(height * jnp.exp(-rate * t), 0.3), obs=y)


def decay_posterior(y, num_draws):
    """Draws of height and rate from a fine grid of their logarithms."""
    edges = np.linspace(-2.5, 3.5, 3001)
    middles, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    height, rate = middles[:, None], middles
    log_p = -((height - 0.5) ** 2 + rate**2) / 0.5
    for t, value in zip(TIMES, y, strict=True):
        log_p = log_p - ((value - np.exp(height - np.exp(rate) * t)) / 0.3) ** 2 / 2
    p = np.exp(log_p - log_p.max()).ravel()
    rng = np.random.default_rng(0)
    cells = np.stack(np.divmod(rng.choice(p.size, num_draws, p=p / p.sum()), len(middles)), -1)
    return np.exp(middles[cells] + width * (rng.random(cells.shape) - 0.5))


def judged(guide, params, reference, sites, **data):
    """The mean of three values of k-hat, and the C2ST."""
    k = np.mean(
        [
            psis_diagnostic(random.key(i), params, guide.model, guide, num_particles=20_000, **data)
            for i in range(3)
        ]
    )
    draws = guide.sample_posterior(random.key(2), params, sample_shape=(NUM_DRAWS,), **data)
    return k, c2st(reference, np.column_stack([draws[name] for name in sites]))


def tuned(guide, *, peak, num_steps, **data):
    """Parameters after SVI on one data set."""
    schedule = optax.cosine_decay_schedule(peak, num_steps)
    svi = SVI(guide.model, guide, optax.adam(schedule), Trace_ELBO(num_particles=32))
    return svi.run(random.key(3), num_steps, progress_bar=False, **data).params


def test_tuning_for_one_data_set_comes_nearer_to_its_posterior():
    """Of an observation in the tail: height and rate are two prior standard deviations off.

    The networks have hardly been trained, but k-hat is low already: draws are spread too widely.
    """
    noise = np.random.default_rng(0).normal(size=len(TIMES))
    data = {"t": TIMES, "y": np.exp(1.5 - np.exp(1.0) * TIMES) + 0.3 * noise}
    approximator = npa.amortize(decay, TIMES, y=np.zeros(len(TIMES)))
    approximator.fit(random.key(1), epochs=1, num_batches=100, progress_bar=False)
    guide = npa.AmortizedGuide(decay, approximator)
    reference = decay_posterior(data["y"], NUM_DRAWS), ("height", "rate")
    before = judged(guide, {}, *reference, **data)
    after = judged(guide, tuned(guide, peak=5e-4, num_steps=1000, **data), *reference, **data)
    print(f"k-hat {before[0]:.2f} to {after[0]:.2f}, C2ST {before[1]:.3f} to {after[1]:.3f}")
    assert after[0] < 0.5
    assert after[1] < before[1]


@pytest.fixture(scope="module")
def regression_guide():
    """After 1,000 steps, which is enough for usual data."""
    approximator = npa.amortize(models.regression, models.DESIGN, y=np.zeros(len(models.DESIGN)))
    approximator.fit(random.key(1), epochs=1, num_batches=1000, progress_bar=False)
    return npa.AmortizedGuide(models.regression, approximator)


def test_tuning_makes_weights_of_unusual_data_trustworthy(regression_guide):
    """Intercept and slopes are four prior standard deviations off, where nothing was learned.

    k-hats after tuning were 0.47, 0.39 and 0.47; after half as many steps 0.35, 0.60 and 0.68.
    """
    ends = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        noise = models.NOISE * rng.normal(size=len(models.DESIGN))
        data = {"x": models.DESIGN, "y": 1 + 8 + models.DESIGN @ [4, -4] + noise}
        exact = models.regression_posterior(data["y"])
        draws = rng.multivariate_normal(exact.mean, exact.covariance, NUM_DRAWS)
        reference = draws, ("intercept", "slope")
        before = judged(regression_guide, {}, *reference, **data)
        params = tuned(regression_guide, peak=1e-3, num_steps=4000, **data)
        after = judged(regression_guide, params, *reference, **data)
        print(f"k-hat {before[0]:.2f} to {after[0]:.2f}, C2ST {before[1]:.3f} to {after[1]:.3f}")
        assert before[0] > 0.7
        assert after[1] <= before[1]
        ends.append(after[0])
    # above 0.7 weights are not to be trusted (Vehtari et al., 2024)
    assert np.max(ends) < 0.7 and np.median(ends) < 0.5


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
