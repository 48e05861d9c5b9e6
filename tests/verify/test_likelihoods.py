# SPDX-License-Identifier: Apache-2.0
"""Learned likelihoods and ratios of full size under NUTS, beside what they learn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from tests import models, observations

pytestmark = pytest.mark.verify
SIZES = (20, 200)


def trained(name, **options):
    simulator = observations.SIMULATORS[name]()
    adapter = npa.Adapter.for_likelihood(simulator)
    approximator = npa.ContinuousApproximator(simulator, adapter=adapter)
    approximator.fit(random.key(0), progress_bar=False, **options)
    return approximator


def compare(label, draws, reference):
    """Errors of means in posterior standard deviations, and of those relatively."""
    errors = {
        name: (
            abs(draws[name].mean() - reference[name].mean()) / reference[name].std(),
            abs(draws[name].std() / reference[name].std() - 1),
        )
        for name in reference
    }
    print(label, {name: tuple(np.round(pair, 3)) for name, pair in errors.items()})
    return errors


def test_likelihood_of_a_normal():
    approximator = trained("normal", epochs=100)
    for size in SIZES:
        y = np.random.default_rng(size).normal(0.7, 1, size).astype(np.float32)
        mean, sd = models.normal_mean_posterior(y)
        draws = observations.nuts(partial(observations.learned_normal, approximator), y)["mu"]
        error, spread = abs(draws.mean() - mean) / sd, abs(draws.std() / sd - 1)
        print("normal", size, error, spread)
        if size == observations.NUM_OBSERVATIONS:
            # the Monte Carlo error of the mean of 4,000 draws is near 0.03 sd
            assert error < 0.1 and spread < 0.1


def test_ratio_of_a_normal():
    for size in SIZES:
        simulator = npa.ModelSimulator(observations.normal, np.zeros(size))
        approximator = npa.RatioApproximator(simulator)
        approximator.fit(random.key(0), epochs=40, progress_bar=False)
        y = np.random.default_rng(size).normal(0.7, 1, size).astype(np.float32)
        mean, sd = models.normal_mean_posterior(y)
        draws = observations.nuts(partial(observations.ratio_normal, approximator), y)["mu"]
        error, spread = abs(draws.mean() - mean) / sd, abs(draws.std() / sd - 1)
        print("ratio", size, error, spread)
        if size == observations.NUM_OBSERVATIONS:
            assert error < 0.1 and spread < 0.1


def test_likelihood_of_counts():
    approximator = trained("poisson", epochs=60)
    for size in SIZES:
        x = np.random.default_rng(size).normal(size=size).astype(np.float32)
        y = np.random.default_rng(size).poisson(np.exp(0.4 + 0.3 * x))
        draws = observations.nuts(partial(observations.learned_poisson, approximator), x, y)
        reference = observations.nuts(observations.poisson, x, y)
        errors = compare(f"poisson {size}", draws, reference)
        if size == observations.NUM_OBSERVATIONS:
            # both means have a Monte Carlo error near 0.03 sd
            assert max(error for error, _ in errors.values()) < 0.15


def test_likelihood_of_choices_and_times():
    approximator = trained("race", epochs=60)
    for size in SIZES:
        truth = {"drift": jnp.array(0.6), "speed": jnp.array(-0.2)}
        longer = npa.ModelSimulator(observations.race, np.zeros(size, int), np.ones(size))
        trace = longer.trace(random.key(size), truth)
        choice, time = (np.asarray(trace[name]["value"]) for name in ("choice", "time"))
        draws = observations.nuts(partial(observations.learned_race, approximator), choice, time)
        reference = observations.nuts(observations.race, choice, time)
        errors = compare(f"choice and time {size}", draws, reference)
        if size == observations.NUM_OBSERVATIONS:
            assert max(error for error, _ in errors.values()) < 0.15
    gradient = jax.grad(lambda v: approximator.likelihood(v).log_prob(choice).sum())(truth)
    assert all(bool(jnp.isfinite(slope)) for slope in gradient.values())
