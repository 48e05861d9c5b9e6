# SPDX-License-Identifier: Apache-2.0
"""The adapter of a likelihood: what an observation is, and its bijection."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.adapters.parts import Category, Count, Numbers
from tests import models, observations


def adapted(model, *args, **options):
    return npa.Adapter.for_likelihood(npa.ModelSimulator(model, *args), **options)


def kinds(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", 5):
        numpyro.sample("heavy", dist.Cauchy(mu, 1), obs=y["heavy"])
        numpyro.sample("time", dist.LogNormal(mu, 1), obs=y["time"])
        numpyro.sample("share", dist.Beta(jnp.exp(mu), 2), obs=y["share"])
        numpyro.sample("shares", dist.Dirichlet(jnp.exp(mu) * jnp.ones(3)), obs=y["shares"])


KINDS = {name: np.full(5, 0.5) for name in ("heavy", "time", "share")}
KINDS |= {"shares": np.full((5, 3), 1 / 3)}


def sharing(y):
    """A discrete latent that all members share is marginalized: they depend on each other."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu + 2 * z, 1), obs=y)


def mixture(y):
    """A discrete latent of each member is marginalized: they are independent."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu + 2 * z, 1), obs=y)


def correlated(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    covariance = 0.5 + 0.5 * jnp.eye(len(y))
    numpyro.sample("y", dist.MultivariateNormal(mu * jnp.ones(len(y)), covariance), obs=y)


def pooled(x, y):
    """Exchangeable, but the mean of all ``x`` enters each ``y``."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", dist.Normal(mu, 1), obs=x)
        numpyro.sample("y", dist.Normal(x.mean(), 1), obs=y)


ZEROS = np.zeros(5)
CASES = [
    (models.normal_mean, (ZEROS,), {"y": 0}),
    (mixture, (ZEROS,), {"y": 0}),
    (sharing, (ZEROS,), {}),
    (correlated, (ZEROS,), {}),
    (pooled, (ZEROS, ZEROS), {}),
    (models.regression, (models.DESIGN, np.zeros(6)), {}),
    (models.eight_schools, (models.SIGMA, models.EFFECTS), {}),
]


@pytest.mark.parametrize("model, args, axes", CASES, ids=[case[0].__name__ for case in CASES])
def test_independent_members(model, args, axes):
    adapter = adapted(model, *args)
    assert adapter.observations.axes == axes
    unit = "each observation by itself" if axes else "all observations jointly"
    assert unit in str(adapter)


@pytest.mark.verify
def test_covariates_belong_to_their_observations():
    adapter = npa.Adapter.for_likelihood(observations.SIMULATORS["poisson"]())
    assert adapter.observations.axes == {"y": 0, "x": 0}
    row = jax.jit(adapter.forward)({"intercept": 0.1, "slope": 0.2, "x": 1.0, "y": 3})
    assert row["inference_variables"].shape == (1,) and row["inference_variables"][0] == 3
    assert row["inference_conditions"].shape == (3,)
    assert isinstance(adapter.observations.parts[0], Count)


def test_parts_in_trace_order():
    adapter = npa.Adapter.for_likelihood(observations.SIMULATORS["race"]())
    assert adapter.observations.parts == (Category(2), Numbers(1))


@pytest.mark.verify
def test_round_trip_and_log_determinants():
    simulator = npa.ModelSimulator(kinds, KINDS)
    adapter = npa.Adapter.for_likelihood(simulator)
    draws = simulator.sample(random.key(3), 40)
    data = {name: draws[name][:, 0] for name in KINDS} | {"mu": draws["mu"]}
    inputs = jax.jit(adapter.forward)(data)
    assert inputs["inference_variables"].shape == (40, 5)
    vectors = {"inference_variables": inputs["inference_variables"]}
    back = jax.jit(adapter.inverse)(vectors)
    for name in KINDS:
        np.testing.assert_allclose(back[name], data[name], rtol=2e-3, atol=1e-4)

    def coordinates(vector):
        values = adapter.inverse({"inference_variables": vector})
        values["shares"] = values["shares"][:2]
        return jnp.concatenate([jnp.ravel(values[name]) for name in KINDS])

    jacobians = jax.jit(jax.vmap(jax.jacfwd(coordinates)))(inputs["inference_variables"])
    expected = -np.linalg.slogdet(np.asarray(jacobians, np.float64))[1]
    log_det = jax.jit(adapter.log_det_jac)(data)
    np.testing.assert_allclose(log_det, expected, rtol=1e-2, atol=1e-2)


def test_override():
    jointly = adapted(models.normal_mean, ZEROS, sets={"y": None})
    assert jointly({"mu": 0.0, "y": ZEROS})["inference_variables"].shape == (5,)
    with pytest.raises(ValueError, match=r"`sets`: expected all of \['y'\]"):
        adapted(models.normal_mean, ZEROS, sets={"z": 0})
    with pytest.raises(ValueError, match="an axis of the same length"):
        adapted(models.normal_mean, ZEROS, sets={"y": 3})


def multinomial(y):
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("y", dist.Multinomial(10, shares), obs=y)


def test_what_has_no_learnable_density_is_refused():
    with pytest.raises(ValueError, match=r"'y' is discrete.*add uniform noise"):
        adapted(multinomial, np.array([3, 3, 4]))
    with pytest.raises(ValueError, match=r"\['y'\] are masked"):
        adapted(models.masked, ZEROS, np.arange(5) > 1)
    simulator = npa.ModelSimulator(models.normal_mean, ZEROS, sizes={"n": (2, 5)})
    with pytest.raises(ValueError, match="'n' varies"):
        npa.Adapter.for_likelihood(simulator)
