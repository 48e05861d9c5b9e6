# SPDX-License-Identifier: Apache-2.0
"""Observed values become network inputs of order one."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from tests import models

KINDS = {
    "normal": lambda mu: dist.Normal(mu, 1),
    "large": lambda mu: dist.Normal(1e6 + 1e3 * mu, 1e3),
    "small": lambda mu: dist.Normal(1e-6 * mu, 1e-6),
    "cauchy": lambda mu: dist.StudentT(1, mu, 1),
    "lognormal": lambda mu: dist.LogNormal(mu, 3),
    "counts": lambda mu: dist.Poisson(jnp.exp(3 + 2 * mu)),
    "sparse": lambda mu: dist.Poisson(jnp.exp(mu - 2)),
    "binary": lambda mu: dist.Bernoulli(logits=mu),
}


def zoo(n):
    """Observations of every kind, in one plate."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", n):
        for name, kind in KINDS.items():
            numpyro.sample(name, kind(mu))


@pytest.fixture(scope="module")
def simulator():
    return npa.ModelSimulator(zoo, 5, observed=list(KINDS))


@pytest.fixture(scope="module", params=[pytest.param("set", marks=pytest.mark.verify), "numbers"])
def inputs_of(request, simulator):
    """Values ``(num, 5)`` of each kind to their inputs, of the same shape."""
    sets = None if request.param == "set" else dict.fromkeys(KINDS)
    adapter = npa.Adapter.for_posterior(simulator, sets=sets)
    forward = jax.jit(adapter.forward)

    def inputs(values):
        (array,) = forward(values).values()
        if request.param == "set":
            return dict(zip(KINDS, np.moveaxis(array, -1, 0), strict=True))
        return dict(zip(KINDS, np.split(np.asarray(array), len(KINDS), axis=-1), strict=True))

    return inputs


def test_inputs_are_of_order_one(simulator, inputs_of):
    draws = simulator.sample(random.key(1), 4000)
    inputs = inputs_of({name: draws[name] for name in KINDS})
    for name, values in inputs.items():
        assert values.dtype == np.float32 and values.shape == (4000, 5)
        # a sparse count has its mass on few values; a tenth in a thousand may lie further out
        assert np.quantile(np.abs(values), 0.999) < 12, name
        assert 0.2 < np.sqrt(np.mean(np.clip(values, -10, 10) ** 2)) < 3, name


def test_inputs_grow_with_the_value_and_never_overflow(simulator, inputs_of):
    for sign in (1, -1):
        ladder = sign * 10.0 ** np.linspace(-8, 9, 35).repeat(5).reshape(35, 5)
        values = {name: jnp.asarray(ladder, simulator.sites[name].dtype) for name in KINDS}
        for name, column in inputs_of(values).items():
            assert np.isfinite(column).all(), name
            assert (sign * np.diff(column[:, 0]) >= 0).all(), name


def test_masked_entries_are_not_seen():
    keep = np.array([True, False, True, True])
    simulator = npa.ModelSimulator(models.masked, np.zeros(4), keep)
    adapter = npa.Adapter.for_posterior(simulator)

    def inputs(*y):
        (array,) = adapter({"y": jnp.array(y)}).values()
        return np.asarray(array)

    expected = inputs(1.0, 0.0, -2.0, 3.0)
    for hidden in (1e9, np.nan, np.inf):
        np.testing.assert_array_equal(inputs(1.0, hidden, -2.0, 3.0), expected)
    assert (inputs(1.0, 0.0, -2.0, 4.0) != expected).any()


def test_constant_observations_are_harmless():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(7 + 1e-20 * mu, 1e-20).expand([5]), obs=y)

    simulator = npa.ModelSimulator(model, np.ones(5))
    adapter = npa.Adapter.for_posterior(simulator, sets={"y": None})
    assert np.isfinite(adapter({"y": 7 * jnp.ones(5)})["inference_conditions"]).all()


def test_forward_without_observations_or_without_latents():
    simulator = npa.ModelSimulator(models.normal_mean, np.ones(5))
    adapter = npa.Adapter.for_posterior(simulator)
    assert set(adapter({"mu": jnp.zeros(())})) == {"inference_variables"}
    assert set(adapter({"y": jnp.zeros(5)})) == {"summary_variables"}
