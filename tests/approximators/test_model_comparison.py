# SPDX-License-Identifier: Apache-2.0
"""Posterior probabilities of models against analytic Bayes factors."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.networks import MLP
from tests.conftest import SETS, optimized

SIZE = 10
FIT = {"epochs": 10, "num_batches": 100, "batch_size": 256, "progress_bar": False}


def null(y):
    numpyro.sample("unused", dist.Normal(0, 1))  # a model needs a latent site
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(0, 1), obs=y)


def free(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def log_bayes_factor(y):
    """Of the free mean against the null: the sum of y is N(0, n) or N(0, n + n^2)."""
    n = y.shape[-1]
    return y.sum(-1) ** 2 / (2 * (1 + n)) - np.log1p(n) / 2


def models():
    return {each.__name__: npa.ModelSimulator(each, jnp.zeros(SIZE)) for each in (null, free)}


@pytest.fixture(scope="module")
def nested():
    simulator = npa.ModelComparisonSimulator(list(models().values()), probs=[0.3, 0.7])
    approximator = npa.ModelComparisonApproximator(
        simulator,
        classifier_network=partial(MLP, widths=(64, 64)),
        summary_network=SETS,
    )
    with optimized():
        approximator.fit(random.key(0), **FIT)
    return approximator


def test_bayes_factors_are_the_analytic_ones(nested):
    y = np.asarray(nested.source.sample(random.key(1), 2000)["y"])
    exact = log_bayes_factor(y)
    learned = np.asarray(nested.log_bayes_factors({"y": y}))
    assert (learned[:, 0] == 0).all()
    error = np.abs(learned[:, 1] - exact)[np.abs(exact) < 5]
    assert error.mean() < 0.15, error.mean()
    again = nested.log_bayes_factors({"y": y}, reference="model 1", batch_size=300)
    np.testing.assert_allclose(again[:, 0], -learned[:, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", [(0.3, 0.7), (0.9, 0.1), (1.0, 0.0)])
def test_other_prior_probabilities(nested, prior):
    y = np.zeros((3, SIZE)) + np.array([[-0.5], [0.0], [0.3]])
    weights = np.array(prior) * np.exp(nested.log_bayes_factors({"y": y}))
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(nested.predict({"y": y}, prior_probs=prior), expected, rtol=1e-4)
    if prior == (0.3, 0.7):
        logits = np.asarray(nested.predict({"y": y}, probs=False))
        np.testing.assert_allclose(nested.predict({"y": y}), expected, rtol=1e-4)
        np.testing.assert_allclose(
            np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), expected, rtol=1e-4
        )


def test_the_adapter_is_derived(nested):
    assert "one set of members" in repr(nested) and "in every model" in repr(nested)
    assert nested.predict({"y": np.zeros(SIZE)}).shape == (2,)
    one, permuted = (nested.predict({"y": y}) for y in (np.arange(SIZE), np.arange(SIZE)[::-1]))
    np.testing.assert_allclose(one, permuted, rtol=1e-4, atol=1e-6)


def test_what_is_a_set_in_one_model_alone_is_conditioned_on_as_numbers():
    def walk(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1))
        numpyro.sample("y", dist.GaussianRandomWalk(scale, num_steps=SIZE), obs=y)

    simulators = [npa.ModelSimulator(each, jnp.zeros(SIZE)) for each in (null, walk)]
    row = npa.ModelComparisonApproximator(simulators)._row
    assert row["inference_conditions"].shape == (SIZE,) and "summary_variables" not in row


@pytest.mark.verify
def test_functions_need_an_adapter():
    def one(rng_key):
        return {"x": random.normal(rng_key, (3,))}

    def two(rng_key):
        return {"x": 2 * random.normal(rng_key, (3,)), "extra": random.normal(rng_key)}

    simulators = [npa.make_simulator(one), npa.make_simulator(two)]
    with pytest.raises(ValueError, match="adapter: expected one"):
        npa.ModelComparisonApproximator(simulators)
    adapter = npa.Adapter().standardize(["x"]).rename("x", "inference_conditions")
    approximator = npa.ModelComparisonApproximator(simulators, adapter=adapter)
    with pytest.raises(RuntimeError, match="not trained yet"):
        approximator.predict({"x": np.zeros(3)})
    bank = npa.ModelComparisonSimulator(simulators).sample(random.key(0), 200)
    approximator.fit(random.key(0), epochs=1, dataset=bank, progress_bar=False)
    assert approximator.predict({"x": np.zeros((4, 3))}).shape == (4, 2)


def test_what_does_not_fit_is_refused(nested):
    y = {"y": np.zeros(SIZE)}
    for bad in ([0.5, 0.2], [1.5, -0.5], [1.0]):
        with pytest.raises(ValueError, match="prior_probs: expected 2 probabilities"):
            nested.predict(y, prior_probs=bad)
    with pytest.raises(ValueError, match="reference: expected one of"):
        nested.log_bayes_factors(y, reference=2)
    with pytest.raises(ValueError, match="probs: expected all positive"):
        npa.ModelComparisonApproximator(
            npa.ModelComparisonSimulator(list(models().values()), probs=[1.0, 0.0])
        )


def test_models_without_a_common_site_are_refused():
    def other(z):
        unused = numpyro.sample("unused", dist.Normal(0, 1))
        numpyro.sample("z", dist.Normal(unused, 1), obs=z)

    simulators = [npa.ModelSimulator(null, jnp.zeros(SIZE)), npa.ModelSimulator(other, 0.0)]
    with pytest.raises(ValueError, match="no site in common"):
        npa.ModelComparisonApproximator(simulators)
