# SPDX-License-Identifier: Apache-2.0
"""Whatever simulations come from, the posterior is the same: mu | x of a normal mean."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from tests.conftest import FLOW, SETS

SIZE = 5
OPTIONS = {"inference_network": FLOW, "summary_network": SETS}


def prior(rng_key):
    return {"mu": random.normal(rng_key)}


def likelihood(rng_key, mu):
    return {"x": mu + random.normal(rng_key, (SIZE,))}


def host_prior(rng):
    return {"mu": rng.normal()}


def host_likelihood(rng, mu):
    return {"x": rng.normal(mu, size=SIZE)}


def adapter():
    return (
        npa.Adapter()
        .standardize(["mu"])
        .concatenate(["mu"], into="inference_variables")
        .as_set("x")
        .rename("x", "summary_variables")
    )


def jax_functions(tmp_path):
    return npa.make_simulator([prior, likelihood])


def host_functions(tmp_path):
    return npa.make_simulator([host_prior, host_likelihood])


def disk(tmp_path):
    simulator = npa.make_simulator([prior, likelihood])
    return simulator.to_disk(
        random.key(0), 5000, tmp_path / "bank", chunk_size=500, progress_bar=False
    )


@pytest.mark.verify
@pytest.mark.parametrize("source", [jax_functions, host_functions, disk])
def test_posterior(source, tmp_path):
    approximator = npa.ContinuousApproximator(source(tmp_path), adapter=adapter(), **OPTIONS)
    assert {n: s.role for n, s in approximator.sites.items()} == {"mu": "latent", "x": "observed"}
    approximator.fit(random.key(1), epochs=8, num_batches=50, batch_size=100, progress_bar=False)
    rng = np.random.default_rng(1)
    x = rng.normal(rng.normal(size=(100, 1)), size=(100, SIZE))
    draws = np.asarray(approximator.sample(random.key(2), 400, {"x": x})["mu"])
    mean, sd = x.sum(1) / (1 + SIZE), (1 + SIZE) ** -0.5
    # Monte Carlo error of a mean: 1 / sqrt(400) = 0.05; small networks, trained for seconds
    assert np.sqrt((((draws.mean(1) - mean) / sd) ** 2).mean()) < 0.25
    assert abs(draws.std(1).mean() / sd - 1) < 0.12
    log_q = np.asarray(approximator.log_prob({"mu": draws, "x": x}))
    entropy = 0.5 * np.log(2 * np.pi * np.e * sd**2)
    assert abs(log_q.mean() + entropy) < 0.12


@pytest.mark.verify
def test_inference_data_without_a_model():
    simulator = npa.make_simulator([prior, likelihood])
    approximator = npa.ContinuousApproximator(simulator, adapter=adapter(), **OPTIONS)
    approximator.fit(random.key(1), epochs=1, num_batches=2, progress_bar=False)
    tree = approximator.to_inference_data(random.key(2), {"x": np.zeros(SIZE)}, num_samples=40)
    assert set(tree.children) == {
        "posterior",
        "prior",
        "prior_predictive",
        "observed_data",
        "sample_stats",
    }
    assert tree["posterior"]["mu"].shape == (4, 10)


def test_functions_need_an_adapter():
    with pytest.raises(ValueError, match="no model from which it could be derived"):
        npa.ContinuousApproximator(npa.make_simulator([prior, likelihood]))


def test_an_adapter_without_inference_variables():
    with pytest.raises(ValueError, match="expected `inference_variables` among its outputs"):
        npa.ContinuousApproximator(
            npa.make_simulator([prior, likelihood]), adapter=npa.Adapter().as_set("x")
        )


@pytest.mark.verify
def test_partly_observed_data():
    """Values are missing at random: the posterior is that of those which are there."""

    def lose(rng_key, x):
        lost = random.bernoulli(rng_key, 0.4, (SIZE,))
        return {"x": jnp.where(lost, jnp.nan, x)}

    missing = (
        npa.Adapter()
        .concatenate(["mu"], into="inference_variables")
        .nan_to_num("x", return_mask=True)
        .concatenate(["x", "x_mask"], into="inference_conditions")
    )
    approximator = npa.ContinuousApproximator(
        npa.make_simulator([prior, likelihood, lose]), adapter=missing, inference_network=FLOW
    )
    approximator.fit(random.key(1), epochs=12, num_batches=100, progress_bar=False)
    rng = np.random.default_rng(1)
    x = rng.normal(rng.normal(size=(100, 1)), size=(100, SIZE))
    x[rng.uniform(size=x.shape) < 0.4] = np.nan
    draws = np.asarray(approximator.sample(random.key(2), 400, {"x": x})["mu"])
    seen = (~np.isnan(x)).sum(1)
    mean, sd = np.nansum(x, 1) / (1 + seen), (1 + seen) ** -0.5
    assert np.sqrt((((draws.mean(1) - mean) / sd) ** 2).mean()) < 0.25
    assert abs((draws.std(1) / sd).mean() - 1) < 0.12
