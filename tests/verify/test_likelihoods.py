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
# Draws of each of four chains: Monte Carlo errors of means near .012 sd where they are held to
# .1 sd, and .025 sd where they are only told: learned likelihoods of many observations cost.
NUM_SAMPLES = {20: 4000, 200: 1000}


def nuts(model, *data):
    return observations.nuts(model, *data, num_samples=NUM_SAMPLES[len(data[0])])


def trained(name, **options):
    simulator = observations.SIMULATORS[name]()
    adapter = npa.Adapter.for_likelihood(simulator)
    approximator = npa.ContinuousApproximator(simulator, adapter=adapter)
    approximator.fit(random.key(0), progress_bar=False, **options)
    return approximator


def trained_ratio(simulator, epochs):
    approximator = npa.RatioApproximator(simulator)
    approximator.fit(random.key(0), epochs=epochs, progress_bar=False)
    return approximator


def compare(label, size, draws, reference):
    """Errors of means in posterior standard deviations, and of those relatively."""
    errors = {
        name: (abs(draws[name].mean() - mean) / sd, abs(draws[name].std() / sd - 1))
        for name, (mean, sd) in reference.items()
    }
    print(label, size, {name: tuple(np.round(pair, 3)) for name, pair in errors.items()})
    if size == observations.NUM_OBSERVATIONS:
        assert max(error for error, _ in errors.values()) < 0.1, errors
        assert max(spread for _, spread in errors.values()) < 0.1, errors


def moments(draws):
    return {name: (values.mean(), values.std()) for name, values in draws.items()}


def normal_data(size):
    y = np.random.default_rng(size).normal(0.7, 1, size).astype(np.float32)
    return y, {"mu": models.normal_mean_posterior(y)}


def counts(size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=size).astype(np.float32)
    y = rng.poisson(np.exp(0.4 + 0.3 * x))
    return (x, y), moments(nuts(observations.poisson, x, y))


def choices_and_times(size):
    truth = {"drift": jnp.array(0.6), "speed": jnp.array(-0.2)}
    simulator = npa.ModelSimulator(observations.race, np.zeros(size, int), np.ones(size))
    trace = simulator.trace(random.key(size), truth)
    data = tuple(np.asarray(trace[name]["value"]) for name in ("choice", "time"))
    return data, moments(nuts(observations.race, *data))


def test_likelihood_of_a_normal():
    approximator = trained("normal", epochs=100)
    for size in SIZES:
        y, reference = normal_data(size)
        model = partial(observations.learned_normal, approximator)
        compare("normal, likelihood", size, nuts(model, y), reference)


def test_likelihood_of_counts():
    approximator = trained("poisson", epochs=60)
    for size in SIZES:
        data, reference = counts(size)
        model = partial(observations.learned_poisson, approximator)
        compare("poisson, likelihood", size, nuts(model, *data), reference)


def test_likelihood_of_choices_and_times():
    approximator = trained("race", epochs=60)
    for size in SIZES:
        data, reference = choices_and_times(size)
        model = partial(observations.learned_race, approximator)
        compare("race, likelihood", size, nuts(model, *data), reference)
    check_gradient(approximator, data)


def check_gradient(approximator, data):
    """Of the log density of choices and times, against central differences."""

    def total(drift, speed):
        values = {"drift": drift, "speed": speed}
        choice, time = data
        following = approximator.likelihood(values | {"choice": choice})
        return (
            approximator.likelihood(values).log_prob(choice).sum() + following.log_prob(time).sum()
        )

    at, step = (0.6, -0.2), 3e-2  # rounding of a sum near 300 is near 1e-4, divided by the step
    slopes = jax.grad(total, argnums=(0, 1))(*at)
    for k, slope in enumerate(slopes):
        high, low = (tuple(v + s * (i == k) for i, v in enumerate(at)) for s in (step, -step))
        numeric = (total(*high) - total(*low)) / (2 * step)
        print("gradient", float(slope), float(numeric))
        np.testing.assert_allclose(slope, numeric, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("size", SIZES)
def test_ratio_of_a_normal(size):
    approximator = trained_ratio(npa.ModelSimulator(observations.normal, np.zeros(size)), 40)
    y, reference = normal_data(size)
    model = partial(observations.ratio_normal, approximator)
    compare("normal, ratio", size, nuts(model, y), reference)


@pytest.mark.parametrize("size", SIZES)
def test_ratio_of_counts(size):
    def covariates(rng_key):
        return {"x": random.normal(rng_key, (size,))}

    simulator = npa.ModelSimulator(observations.poisson, observed=("y",), context=covariates)
    approximator = trained_ratio(simulator, 100)
    data, reference = counts(size)
    model = partial(observations.ratio_poisson, approximator)
    compare("poisson, ratio", size, nuts(model, *data), reference)


@pytest.mark.parametrize("size", SIZES)
def test_ratio_of_choices_and_times(size):
    zeros = np.zeros(size, int)
    approximator = trained_ratio(npa.ModelSimulator(observations.race, zeros, zeros + 1.0), 100)
    data, reference = choices_and_times(size)
    model = partial(observations.ratio_race, approximator)
    compare("race, ratio", size, nuts(model, *data), reference)
