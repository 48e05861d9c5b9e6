# SPDX-License-Identifier: Apache-2.0
"""Moving the latents of a bank leaves its distribution as it is."""

import jax
import numpy as np
import pytest
from jax import random
from scipy import stats

import numpyro_amortized as npa
from numpyro_amortized.rejuvenation import Rejuvenation, has_density
from tests import models
from tests.conftest import others_verified

NUM = 4000
MODELS = {
    "normal mean": (models.normal_mean, np.zeros(3)),
    "masked": (models.masked, np.zeros(3), np.array([True, False, True])),
    "bounded pair": (models.bounded_pair, 0.0),
}


@pytest.fixture(scope="module", params=others_verified(MODELS, {"masked"}))
def moved(request):
    """Values before and after fifty moves."""
    simulator = npa.ModelSimulator(*MODELS[request.param])
    adapter = npa.Adapter.for_posterior(simulator)
    bank = simulator.sample(random.key(0), NUM)
    moves = Rejuvenation.of(simulator, adapter, bank)
    chains = jax.jit(moves.start)(bank)
    after = jax.jit(lambda key, chains: moves.values(moves.move(key, chains, 50)))
    return simulator, bank, after(random.key(1), chains)


def test_observations_stay_and_latents_move(moved):
    simulator, before, after = moved
    for name, site in simulator.sites.items():
        change = np.asarray(after[name] != before[name])
        assert change.mean() > 0.9 if site.role == "latent" else not change.any()


def test_the_joint_distribution_is_that_of_the_simulator(moved):
    simulator, before, after = moved
    for name, site in simulator.sites.items():
        if site.role == "latent":
            # two dependent samples of 4,000: the test is conservative
            assert stats.ks_2samp(before[name], after[name]).pvalue > 1e-3
    latent = next(name for name, site in simulator.sites.items() if site.role == "latent")
    y = np.asarray(before["y"]).reshape(NUM, -1)[:, 0]
    correlations = [np.corrcoef(values[latent], y)[0, 1] for values in (before, after)]
    # five standard errors of the difference of two correlations
    assert abs(np.diff(correlations)[0]) < 5 * np.sqrt(2 / NUM)


def test_which_models_have_a_density():
    assert has_density(npa.ModelSimulator(models.eight_schools, models.SIGMA, models.EFFECTS))

    def implicit():
        import numpyro
        import numpyro.distributions as dist

        theta = numpyro.sample("theta", dist.Normal(0, 1))
        noise = numpyro.sample("noise", dist.Normal(0, 1))
        numpyro.deterministic("x", theta + noise)

    assert not has_density(npa.ModelSimulator(implicit, observed=("x",)))
