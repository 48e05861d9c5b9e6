# SPDX-License-Identifier: Apache-2.0
"""Simulations whose size varies."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.networks import DeepSet
from tests.conftest import FLOW, SETS

LOW, HIGH, NOISE = 2, 20, 2.0


def mean_of(n, x=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("N", n):
        numpyro.sample("x", dist.Normal(mu, NOISE), obs=x)


def mean_of_data(x):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("N", len(x)):
        numpyro.sample("x", dist.Normal(mu, NOISE), obs=x)


def prior_knows_size(n, x=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1 / jnp.sqrt(n)))
    with numpyro.plate("N", n):
        numpyro.sample("x", dist.Normal(mu, NOISE), obs=x)


def exchangeable_vector(n, x=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    covariance = jnp.eye(n) + 0.5
    numpyro.sample("x", dist.MultivariateNormal(mu * jnp.ones(n), covariance), obs=x)


def line(n, z, x=None):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("N", n):
        numpyro.sample("x", dist.Normal(slope * z, NOISE), obs=x)


@pytest.fixture(scope="module")
def simulator():
    return npa.ModelSimulator(mean_of, observed=("x",), sizes={"n": (LOW, HIGH)})


def test_members_are_masked_where_they_are_independent(simulator):
    varying = simulator.varying_size
    assert varying.is_padded
    assert varying.axes == {"x": (0,)}
    assert simulator.sites["n"].role == "context"
    assert simulator.sites["x"].data_sized == (0,)


def test_every_size_is_drawn_alike(simulator):
    sizes = np.asarray(simulator.sample(random.key(0), 20_000)["n"])
    counts = np.bincount(sizes, minlength=HIGH + 1)
    assert counts[:LOW].sum() == 0
    expected = 20_000 / (HIGH - LOW + 1)
    # chi-squared with 18 degrees of freedom: its 99.99 % quantile is 48
    assert ((counts[LOW:] - expected) ** 2 / expected).sum() < 48


def test_a_plate_sized_by_the_data():
    simulator = npa.ModelSimulator(mean_of_data, jnp.arange(5.0), sizes={"N": (LOW, HIGH)})
    assert simulator.sites["x"].shape == (HIGH,)
    assert simulator.varying_size.is_padded
    assert simulator.at_size(7).sites["x"].shape == (7,)


@pytest.mark.verify
@pytest.mark.parametrize("model", [prior_knows_size, exchangeable_vector])
def test_sizes_are_simulated_one_by_one_where_padding_is_wrong(model):
    simulator = npa.ModelSimulator(model, observed=("x",), sizes={"n": (4, 64)})
    varying = simulator.varying_size
    assert not varying.is_padded
    assert varying.lengths[0] == 4
    assert varying.lengths[-1] == 64
    assert "one by one" in str(npa.Adapter.for_posterior(simulator))


@pytest.mark.verify
def test_the_prior_of_each_size_is_right():
    simulator = npa.ModelSimulator(prior_knows_size, observed=("x",), sizes={"n": (4, 64)})
    draws = simulator.sample(random.key(1), 16_000)
    sizes, mu = np.asarray(draws["n"]), np.asarray(draws["mu"])
    for size in simulator.varying_size.lengths:
        values = mu[sizes == size]
        # sd of n normal draws has relative error 1 / sqrt(2 n); about 2,000 draws, 4 errors
        assert abs(values.std() * np.sqrt(size) - 1) < 4 / np.sqrt(2 * len(values))


def test_network_inputs_know_nothing_beyond_the_size(simulator):
    adapter = npa.Adapter.for_posterior(simulator)
    x = np.linspace(-1, 1, HIGH)
    inputs = adapter({"mu": 0.0, "x": x, "n": 5})
    np.testing.assert_array_equal(inputs["summary_mask"], np.arange(HIGH) < 5)
    other = adapter({"mu": 0.0, "x": np.where(np.arange(HIGH) < 5, x, 1e6), "n": 5})
    np.testing.assert_array_equal(inputs["summary_variables"], other["summary_variables"])


@pytest.fixture(scope="module")
def trained(simulator):
    """Hardly; tests/verify/test_statistics.py compares posteriors of several sizes."""
    approximator = npa.ContinuousApproximator(
        simulator, inference_network=FLOW, summary_network=SETS
    )
    approximator.fit(random.key(0), epochs=1, num_batches=10, progress_bar=False)
    return approximator


def test_other_sizes_compile_no_network_again(trained, compilations):
    trained.sample(random.key(3), 10, {"x": np.zeros(3)})
    before = len(compilations)
    trained.sample(random.key(4), 10, {"x": np.ones(11)})
    # to pad another length is a program of its own; the networks' is not compiled again
    assert len(compilations) - before <= 2


@pytest.mark.verify
def test_inference_data_has_the_size_of_the_data(trained):
    tree = trained.to_inference_data(random.key(5), {"x": np.ones(6)}, num_samples=40)
    assert tree["observed_data"]["x"].shape == (6,)
    assert tree["posterior_predictive"]["x"].shape == (4, 10, 6)
    assert tree["log_likelihood"]["x"].shape == (4, 10, 6)
    mu = tree["posterior"]["mu"].values[..., None]
    expected = -0.5 * ((1 - mu) / NOISE) ** 2 - np.log(NOISE * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(
        tree["log_likelihood"]["x"], np.broadcast_to(expected, (4, 10, 6)), rtol=1e-4
    )


@pytest.mark.parametrize("size", [1, HIGH + 1])
def test_sizes_that_training_never_saw_are_refused(trained, size):
    with pytest.raises(ValueError, match=f"between {LOW} and {HIGH}"):
        trained.sample(random.key(0), 10, {"x": np.ones(size)})


@pytest.mark.verify
def test_covariates_vary_with_the_size():
    simulator = npa.ModelSimulator(
        line,
        observed=("x",),
        sizes={"n": (LOW, HIGH)},
        context=lambda key: {"z": random.normal(key, (HIGH,))},
    )
    assert simulator.varying_size.axes == {"z": (0,), "x": (0,)}
    assert "x, z: one set" in str(npa.Adapter.for_posterior(simulator))
    assert simulator.at_size(3).sample(random.key(0), 2)["z"].shape == (2, 3)


@pytest.mark.verify
def test_local_latents_are_marginalized():
    def local(n, x=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("N", n):
            z = numpyro.sample("z", dist.Normal(mu, 1))
            numpyro.sample("x", dist.Normal(z, NOISE), obs=x)

    simulator = npa.ModelSimulator(local, observed=("x",), sizes={"n": (LOW, HIGH)})
    adapter = npa.Adapter.for_posterior(simulator)
    assert "z: not inferred" in str(adapter)
    with pytest.raises(ValueError, match=r"\['z'\] have the size that varies"):
        npa.Adapter.for_posterior(simulator, sites=["mu", "z"])


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"k": (2, 5)}, ValueError, "neither an argument of the model nor one of its plates"),
        ({"n": (5, 5)}, ValueError, "1 <= least < greatest"),
        ({"n": (0, 5)}, ValueError, "1 <= least < greatest"),
        ({"n": (2.5, 5)}, TypeError, "two integers"),
        ({"n": 5}, TypeError, "expected a mapping such as"),
        ({"n": (2, 5), "m": (2, 5)}, ValueError, "one size that varies"),
    ],
)
def test_refused(sizes, error, message):
    def model(n=3, x=None):
        mean_of(n, x)

    with pytest.raises(error, match=message):
        npa.ModelSimulator(model, observed=("x",), sizes=sizes)


def test_covariates_of_fixed_length_are_refused():
    def model(z, x):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        with numpyro.plate("N", len(x)):
            numpyro.sample("x", dist.Normal(slope * z, 1), obs=x)

    with pytest.raises(ValueError, match="argument 'z'"):
        npa.ModelSimulator(model, jnp.ones(5), jnp.arange(5.0), sizes={"N": (2, 9)})


def test_deep_sets_take_the_mask():
    """The summary of a padded set is that of the set."""
    network = DeepSet(1, 4, rngs=nnx.Rngs(0))
    x = np.linspace(-1, 1, HIGH)[:, None]
    full = network(jnp.asarray(x), jnp.arange(HIGH) < 5)
    np.testing.assert_allclose(full, network(jnp.asarray(x[:5])), rtol=1e-5, atol=1e-6)
