# SPDX-License-Identifier: Apache-2.0
"""What the self-consistency loss is good for, against exact posteriors; by ``make verify``."""

import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from tests import models

pytestmark = pytest.mark.verify
NUM_SIMULATIONS, NUM_UNLABELLED, SHIFT = 256, 50, 4.0
RUN = {"epochs": 60, "batch_size": 64, "rejuvenation": 0, "progress_bar": False}


def shifted_data(simulator, rng_key, num):
    """Data of the model with an intercept that is two prior standard deviations off."""
    return {"y": np.asarray(simulator.sample(rng_key, num)["y"]) + SHIFT}


def divergence(approximator, data):
    """Mean over data sets of KL(q | p) of the normal distributions with the moments of q and p."""
    draws = approximator.sample(random.key(9), 4000, data)
    latents = np.concatenate([draws["intercept"][..., None], draws["slope"]], -1)
    values = []
    for y, own in zip(data["y"], np.asarray(latents, np.float64), strict=True):
        exact = models.regression_posterior(y)
        precision = np.linalg.inv(exact.covariance)
        covariance, error = np.cov(own.T), own.mean(0) - exact.mean
        log_det = np.linalg.slogdet(precision @ covariance)[1]
        trace = np.trace(precision @ covariance)
        values.append((trace - 3 - log_det + error @ precision @ error) / 2)
    return np.mean(values)


@pytest.fixture(scope="module")
def divergences():
    """Of approximators with and without the loss, on new data of the model and shifted ones.

    All learn from the same few simulations; 4,000 draws of an exact posterior would have 0.001.
    """
    simulator = npa.ModelSimulator(models.regression, models.DESIGN, np.zeros(6))
    bank = simulator.sample(random.key(0), NUM_SIMULATIONS)
    losses = {
        "without": None,
        "simulated": npa.SelfConsistency(),
        "unlabelled": npa.SelfConsistency(
            data=shifted_data(simulator, random.key(1), NUM_UNLABELLED)
        ),
    }
    new = {
        "own": {"y": np.asarray(simulator.sample(random.key(2), 50)["y"])},
        "shifted": shifted_data(simulator, random.key(3), 50),
    }
    result = {}
    for name, loss in losses.items():
        approximator = npa.ContinuousApproximator(simulator)
        approximator.fit(random.key(4), dataset=bank, **RUN)
        approximator.fit(random.key(5), dataset=bank, self_consistency=loss, **RUN)
        result[name] = {kind: divergence(approximator, data) for kind, data in new.items()}
    print(result)
    return result


def test_few_simulations_tell_more(divergences):
    assert divergences["simulated"]["own"] < 0.5 * divergences["without"]["own"]


def test_unlabelled_data_are_learned_from(divergences):
    """Data sets that were not seen in training, from where the unlabelled ones came."""
    assert divergences["unlabelled"]["shifted"] < 0.2 * divergences["without"]["shifted"]
    assert divergences["unlabelled"]["own"] < 0.5 * divergences["without"]["own"]
