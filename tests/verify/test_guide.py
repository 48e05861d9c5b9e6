# SPDX-License-Identifier: Apache-2.0
"""Long checks of guides: tuned for one data set, by minibatches, and as a flow for NUTS."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, psis_diagnostic
from numpyro.infer.reparam import NeuTraReparam

import numpyro_amortized as npa
from benchmarks.c2st import c2st
from tests import models

pytestmark = pytest.mark.verify
NUM_DRAWS = 5000


TIMES = np.linspace(0, 4, 15)


def decay(t, y=None):
    """A substance that decays to a background: four latents of very different kinds."""
    height = numpyro.sample("height", dist.LogNormal(1, 0.7))
    rate = numpyro.sample("rate", dist.LogNormal(0, 0.7))
    floor = numpyro.sample("floor", dist.Normal(0, 1))
    noise = numpyro.sample("noise", dist.LogNormal(-1.5, 0.5))
    mean = floor + height * jnp.exp(-rate * t)
    numpyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)


LATENTS = ("height", "rate", "floor", "noise")


@pytest.fixture(scope="module")
def decayed():
    """Data, and draws of their posterior by NUTS, shape ``(20_000, 4)``."""
    noise = 0.2 * random.normal(random.key(1), TIMES.shape)
    y = np.asarray(0.3 + 2.5 * jnp.exp(-0.8 * TIMES) + noise)
    kernel = NUTS(decay, target_accept_prob=0.95)
    options = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=5000, **options)
    mcmc.run(random.key(2), TIMES, y=y)
    for draws in mcmc.get_samples(group_by_chain=True).values():
        assert gelman_rubin(np.asarray(draws)) < 1.01
        assert effective_sample_size(np.asarray(draws)) > 2000
    return y, np.column_stack([mcmc.get_samples()[name] for name in LATENTS])


# before tuning, few draws are near the posterior at all
@pytest.mark.filterwarnings("ignore:Not enough tail samples")
def test_tuning_for_one_data_set_makes_up_for_hardly_any_training(decayed):
    y, reference = decayed
    approximator = npa.amortize(decay, TIMES, y=y)
    approximator.fit(random.key(0), epochs=1, num_batches=20, progress_bar=False)
    guide = npa.AmortizedGuide(decay, approximator)
    rows = np.random.default_rng(0).choice(len(reference), NUM_DRAWS, replace=False)

    def judged(params):
        data = {"t": TIMES, "y": y}
        k = psis_diagnostic(random.key(1), params, decay, guide, num_particles=NUM_DRAWS, **data)
        draws = guide.sample_posterior(random.key(2), params, sample_shape=(NUM_DRAWS,), **data)
        return k, c2st(reference[rows], np.column_stack([draws[name] for name in LATENTS]))

    schedule = optax.cosine_decay_schedule(1e-3, 4000)
    svi = SVI(decay, guide, optax.adam(schedule), Trace_ELBO(num_particles=16))
    # at first, draws are so far off that some steps are not finite
    tuned = svi.run(random.key(3), 4000, TIMES, y=y, progress_bar=False, stable_update=True)
    before, after = judged({}), judged(tuned.params)
    print(f"k-hat {before[0]:.2f} to {after[0]:.2f}, C2ST {before[1]:.3f} to {after[1]:.3f}")
    assert before[0] > 0.7 and after[0] < 0.5
    assert after[1] <= before[1]


def test_the_flow_takes_nuts_to_the_exact_posterior(approximate):
    """Of a network that has hardly been trained: NUTS corrects what it lacks."""
    approximator = approximate(models.regression, models.DESIGN, np.zeros(6))
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


def test_tuning_by_minibatches_comes_near_the_exact_posterior():
    """A tenth of the groups in each step; the networks have hardly been trained."""
    theta = 0.5 + 0.8 * random.normal(random.key(5), (20, 1))
    y = np.asarray(theta + random.normal(random.key(6), (20, 5)))
    simulator = npa.ModelSimulator(models.group_means, y)
    adapter = npa.Adapter.for_posterior(simulator, hierarchical=True)
    approximator = npa.ContinuousApproximator(simulator, adapter=adapter)
    approximator.fit(random.key(0), epochs=1, num_batches=100, progress_bar=False)
    guide = npa.AmortizedGuide(models.group_means, approximator, observed={"y": y})
    exact = models.group_means_posterior(y)

    def errors(params):
        """Largest error of a mean or of a standard deviation, in standard deviations."""
        draws = guide.sample_posterior(random.key(1), params, sample_shape=(8000,))
        draws = jax.tree.map(lambda x: np.asarray(x).reshape(8000, -1), draws)
        means = [np.abs((draws[n].mean(0) - m) / sd) for n, (m, sd) in exact.items()]
        sds = [np.abs(draws[n].std(0) / sd - 1) for n, (_, sd) in exact.items()]
        return max(x.max() for x in means), max(x.max() for x in sds)

    schedule = optax.cosine_decay_schedule(1e-3, 4000)
    svi = SVI(models.group_means, guide, optax.adam(schedule), Trace_ELBO(num_particles=8))
    tuned = svi.run(random.key(2), 4000, y, 2, progress_bar=False)
    before, after = errors({}), errors(tuned.params)
    print(f"means {before[0]:.2f} to {after[0]:.2f}, sds {before[1]:.2f} to {after[1]:.2f}")
    assert max(after) < 0.15 < max(before)
