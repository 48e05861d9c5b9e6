# SPDX-License-Identifier: Apache-2.0
"""What the self-consistency loss is good for, against exact posteriors."""

from typing import NamedTuple

import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from tests import models

pytestmark = pytest.mark.verify
NUM_SIMULATIONS, NUM_UNLABELLED, SHIFT = 256, 50, 4.0
NUM_DRAWS = 4000
RUN = {"epochs": 60, "batch_size": 64, "rejuvenation": 0, "progress_bar": False}


class Judged(NamedTuple):
    """Means over data sets, sds the median."""

    mean_error: float  # of posterior means, in posterior standard deviations
    sd_ratio: float
    divergence: float  # KL(q | p) of normal distributions with the moments of q and p
    lost_score: float  # KL(p | q): log density at draws of p, less than that of p


def shifted_data(simulator, rng_key, num):
    """Data of the model with an intercept that is two prior standard deviations off."""
    return {"y": np.asarray(simulator.sample(rng_key, num)["y"]) + SHIFT}


def judge(approximator, data):
    draws = approximator.sample(random.key(9), NUM_DRAWS, data)
    latents = np.concatenate([draws["intercept"][..., None], draws["slope"]], -1)
    exact = [models.regression_posterior(y) for y in data["y"]]
    precision = np.linalg.inv(exact[0].covariance)  # the same for all data
    sd = np.sqrt(np.diag(exact[0].covariance))
    errors = latents.mean(1) - [e.mean for e in exact]
    covariances = np.array([np.cov(x.T) for x in np.asarray(latents, np.float64)])
    divergences = (
        np.einsum("ij,nji->n", precision, covariances)
        - 3
        - np.linalg.slogdet(precision @ covariances)[1]
        + np.einsum("ni,ij,nj->n", errors, precision, errors)
    ) / 2
    return Judged(
        np.abs(errors / sd).mean(),
        np.median(np.sqrt(np.einsum("nii->ni", covariances)) / sd),
        divergences.mean(),
        lost_score(approximator, data, exact),
    )


def lost_score(approximator, data, exact):
    rng = np.random.default_rng(0)
    true = np.array([rng.multivariate_normal(*e, 200) for e in exact])
    latents = {"intercept": true[..., 0], "slope": true[..., 1:]}
    entropy = (3 * np.log(2 * np.pi) + np.linalg.slogdet(exact[0].covariance)[1] + 3) / 2
    return -entropy - np.asarray(approximator.log_prob({**latents, **data})).mean()


@pytest.fixture(scope="module", params=range(3))
def judged(request):
    """Approximators with and without the loss, on new data of the model and shifted ones.

    Networks of one seed learn from the same few simulations for as many steps. 4,000 draws of an
    exact posterior would have a divergence of 0.001.
    """
    simulator = npa.ModelSimulator(models.regression, models.DESIGN, np.zeros(6))
    bank_key, own_key, shifted_key, first_key, second_key = random.split(
        random.key(request.param), 5
    )
    bank = simulator.sample(bank_key, NUM_SIMULATIONS)
    unlabelled = shifted_data(simulator, random.key(100), NUM_UNLABELLED)
    losses = {
        "without": None,
        "simulated": npa.SelfConsistency(),
        "unlabelled": npa.SelfConsistency(data=unlabelled),
    }
    new = {
        "own": {"y": np.asarray(simulator.sample(own_key, 50)["y"])},
        "shifted": shifted_data(simulator, shifted_key, 50),
    }
    result = {}
    for name, loss in losses.items():
        approximator = npa.ContinuousApproximator(simulator)
        approximator.fit(first_key, dataset=bank, **RUN)
        history = approximator.fit(second_key, dataset=bank, self_consistency=loss, **RUN)
        assert history.skipped_steps == 0
        result[name] = {kind: judge(approximator, data) for kind, data in new.items()}
        for kind, row in result[name].items():
            print(request.param, name, kind, *(f"{x:.2f}" for x in row))
    return result


def test_few_simulations_tell_more(judged):
    without, simulated = judged["without"]["own"], judged["simulated"]["own"]
    assert simulated.divergence < 0.5 * without.divergence
    assert simulated.mean_error < without.mean_error
    assert simulated.lost_score < without.lost_score


def test_unlabelled_data_are_learned_from(judged):
    """Data sets that were not seen in training, from where the unlabelled ones came."""
    without, unlabelled = judged["without"], judged["unlabelled"]
    assert unlabelled["shifted"].divergence < 0.2 * without["shifted"].divergence
    assert unlabelled["shifted"].mean_error < 0.5 * without["shifted"].mean_error
    assert unlabelled["shifted"].lost_score < 0.5 * without["shifted"].lost_score
    assert unlabelled["own"].divergence < 0.5 * without["own"].divergence
