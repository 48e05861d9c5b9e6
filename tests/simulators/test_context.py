# SPDX-License-Identifier: Apache-2.0
"""Arguments of a model that are drawn for every simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from tests.conftest import FLOW

MEMBERS = 6


def line(x, scale=1.0, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, scale))
    with numpyro.plate("N", MEMBERS):
        numpyro.sample("y", dist.Normal(slope * x, 1), obs=y)


def covariates(rng_key):
    return {"x": random.uniform(rng_key, (MEMBERS,), minval=-2, maxval=2)}


def scales(rng_key):
    scale_key, x_key = random.split(rng_key)
    return covariates(x_key) | {"scale": jnp.exp(0.3 * random.normal(scale_key))}


@pytest.fixture(scope="module")
def simulator():
    return npa.ModelSimulator(line, observed=("y",), context=covariates)


def test_context_is_a_site_of_its_own_role(simulator):
    assert {n: s.role for n, s in simulator.sites.items()} == {
        "x": "context",
        "slope": "latent",
        "y": "observed",
    }
    assert simulator.sites["x"].shape == (MEMBERS,)


def test_model_is_called_with_what_was_drawn(simulator):
    draws = simulator.sample(random.key(0), 4000)
    residuals = np.asarray(draws["y"] - draws["slope"][:, None] * draws["x"])
    # sd of 24,000 residuals: Monte Carlo error 1 / sqrt(48,000) = 0.0046
    np.testing.assert_allclose(residuals.std(), 1, atol=0.02)
    assert len(np.unique(np.asarray(draws["x"])[:, 0])) > 3990  # drawn for every simulation
    assert abs(np.corrcoef(draws["x"][:, 0], draws["slope"])[0, 1]) < 4 / np.sqrt(4000)


def test_context_of_a_trace_may_be_given(simulator):
    x = jnp.arange(6.0)
    trace = simulator.trace(random.key(0), {"x": x, "slope": 2.0})
    np.testing.assert_allclose(trace["y"]["fn"].mean, 2 * x)


def test_pairs_of_value_and_covariate_are_a_set(simulator):
    adapter = npa.Adapter.for_posterior(simulator)
    assert "y, x: one set of members" in str(adapter)
    data = {"slope": 0.3, "x": np.arange(6.0), "y": np.ones(6)}
    inputs = adapter(data)
    assert inputs["summary_variables"].shape == (MEMBERS, 2)
    assert "inference_conditions" not in inputs


@pytest.mark.verify
def test_priors_may_depend_on_the_context():
    simulator = npa.ModelSimulator(line, observed=("y",), context=scales)
    adapter = npa.Adapter.for_posterior(simulator)
    draws = simulator.sample(random.key(1), 2000)
    # the prior is N(0, scale^2) at each draw's own scale: the variables are N(0, 1)
    variables = np.asarray(adapter(draws)["inference_variables"])
    # 4 standard errors of mean and sd of 2,000 draws
    assert abs(variables.mean()) < 4 / np.sqrt(2000)
    assert abs(variables.std() - 1) < 4 / np.sqrt(4000)
    context = {name: draws[name] for name in ("scale", "x")}
    back = adapter.inverse({"inference_variables": variables, **context})
    np.testing.assert_allclose(back["slope"], draws["slope"], rtol=1e-5)
    with pytest.raises(ValueError, match="depend on the context"):
        adapter.inverse({"inference_variables": np.zeros(1)})


@pytest.mark.verify
def test_posterior_is_amortized_over_the_context(approximate):
    approximator = approximate(line, observed=("y",), context=scales, network=FLOW)
    approximator.fit(random.key(0), epochs=12, num_batches=100, progress_bar=False)
    truth = approximator.source.sample(random.key(1), 200)
    conditions = {name: truth[name] for name in ("x", "scale", "y")}
    draws = np.asarray(approximator.sample(random.key(2), 400, conditions)["slope"])
    precision = truth["scale"] ** -2 + (truth["x"] ** 2).sum(1)
    mean = (truth["x"] * truth["y"]).sum(1) / precision
    sd = precision**-0.5
    errors = (draws.mean(1) - mean) / sd
    # Monte Carlo: 1 / sqrt(400) = 0.05 in quadrature; a small network trained for seconds
    assert np.sqrt((errors**2).mean()) < 0.25
    assert abs(np.median(draws.std(1) / sd) - 1) < 0.1
    # the density is that of the draws: its mean is minus the normal's entropy
    log_q = approximator.log_prob({"slope": draws, **conditions})
    entropy = np.asarray(0.5 * np.log(2 * np.pi * np.e * sd**2))
    assert abs(np.mean(np.asarray(log_q).mean(1) + entropy)) < 0.1
    tree = approximator.to_inference_data(
        random.key(3), {n: v[0] for n, v in conditions.items()}, num_samples=40
    )
    np.testing.assert_array_equal(tree["constant_data"]["x"], truth["x"][0])
    assert tree["posterior_predictive"]["y"].shape == (4, 10, MEMBERS)
    assert {"log_likelihood", "log_prior"} <= set(tree.children)


@pytest.mark.verify
def test_a_shared_context_serves_all_data_sets(approximate):
    approximator = approximate(line, observed=("y",), context=covariates)
    approximator.fit(random.key(0), epochs=1, num_batches=2, progress_bar=False)
    y, x = np.ones((3, MEMBERS)), np.arange(6.0)
    shared = approximator.sample(random.key(1), 5, {"y": y, "x": x})
    repeated = approximator.sample(random.key(1), 5, {"y": y, "x": np.tile(x, (3, 1))})
    np.testing.assert_array_equal(shared["slope"], repeated["slope"])


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (lambda key: {"z": jnp.ones(3)}, ValueError, r"\['z'\], which are no arguments"),
        (lambda key: {"scale": 1.0}, ValueError, "also passed"),
        (lambda key: jnp.ones(3), TypeError, "returns a dictionary"),
        (jnp.ones(3), TypeError, "expected a function of a key"),
    ],
)
def test_refused(context, error, message):
    with pytest.raises(error, match=message):
        npa.ModelSimulator(line, x=jnp.ones(MEMBERS), scale=1.0, observed=("y",), context=context)


def test_missing_context_at_inference(approximate):
    approximator = approximate(line, observed=("y",), context=covariates)
    approximator.fit(random.key(0), epochs=1, num_batches=2, progress_bar=False)
    with pytest.raises(ValueError, match=r"missing: \['x'\]"):
        approximator.sample(random.key(1), 5, {"y": np.ones(MEMBERS)})


def test_simulation_traces(simulator):
    draws = jax.jit(jax.vmap(simulator.simulate))(random.split(random.key(0), 3))
    assert draws["x"].shape == (3, MEMBERS)
