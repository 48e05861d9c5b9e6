# SPDX-License-Identifier: Apache-2.0
"""The bijection between the latent sites and the network's vector."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from tests import models
from tests.conftest import others_verified

NUM_DRAWS = 2000  # as many as an adapter's pilots, whose program then serves again
MODELS = {
    "constrained": (models.constrained, (np.zeros(4),)),
    "bounded pair": (models.bounded_pair, (0.0,)),
    "eight schools": (models.eight_schools, (models.SIGMA, models.EFFECTS)),
    "autoregression": (models.autoregression, (np.zeros(6),)),
}


PRIORS = pytest.mark.parametrize("prior_to_normal", others_verified((True, False), {True}))


@pytest.fixture(scope="module")
def setup():
    """Simulator and adapter of a model, made once."""
    made = {}

    def make(name, prior_to_normal=True):
        if (name, prior_to_normal) not in made:
            model, args = MODELS[name]
            simulator = npa.ModelSimulator(model, *args)
            adapter = npa.Adapter.for_posterior(simulator, prior_to_normal=prior_to_normal)
            made[name, prior_to_normal] = simulator, adapter
        return made[name, prior_to_normal]

    return make


def latents_of(simulator, draws):
    return {name: draws[name] for name, s in simulator.sites.items() if s.role == "latent"}


def size_of(adapter, latents):
    return jax.eval_shape(adapter.forward, latents)["inference_variables"].shape[-1]


def independent(simulator, name, x):
    """Coordinates of a value that determine it: without the triangle of zeros, the last share."""
    match name:
        case "share":
            return x[:-1]
        case "corr":
            return x[jnp.tril_indices(len(x), -1)]
        case _:
            return jnp.ravel(x)


def check_round_trip(simulator, adapter, tolerance):
    """Typical values: the middle 98 % of the prior of each unconstrained number."""
    latents = latents_of(simulator, simulator.sample(random.key(3), NUM_DRAWS))
    vector = jax.jit(adapter.forward)(latents)["inference_variables"]
    low, high = np.quantile(vector, [0.01, 0.99], axis=0)
    typical = np.asarray(((vector >= low) & (vector <= high)).all(-1))
    back = jax.jit(adapter.inverse)({"inference_variables": vector})
    assert typical.mean() > 0.5
    for name, x in latents.items():
        x, again = np.asarray(x)[typical], np.asarray(back[name])[typical]
        assert again.dtype == x.dtype
        assert (np.abs(again - x) <= tolerance * (1 + np.abs(x))).all(), name


def check_support(simulator, latents):
    """How many draws lie outside of each site's own support, at the values of the others."""

    @jax.jit
    @jax.vmap
    def inside(values):
        trace = simulator.trace(random.key(0), values)
        return {name: jnp.all(trace[name]["fn"].support(trace[name]["value"])) for name in values}

    outside = {name: int((~ok).sum()) for name, ok in inside(latents).items()}
    assert outside == dict.fromkeys(latents, 0)


@PRIORS
@pytest.mark.parametrize("name", MODELS)
def test_round_trip(setup, name, prior_to_normal):
    simulator, adapter = setup(name, prior_to_normal)
    check_round_trip(simulator, adapter, 1e-4)


@pytest.mark.verify
def test_round_trip_in_double_precision():
    script = (
        "from tests.adapters.test_latents import *\n"
        "for model, args in MODELS.values():\n"
        "    simulator = npa.ModelSimulator(model, *args)\n"
        "    adapter = npa.Adapter.for_posterior(simulator)\n"
        "    check_round_trip(simulator, adapter, 1e-10)\n"
    )
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    root = Path(__file__).parents[2]
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@PRIORS
def test_no_vector_leaves_the_support(setup, prior_to_normal):
    simulator, adapter = setup("constrained", prior_to_normal)
    size = size_of(adapter, latents_of(simulator, simulator.sample(random.key(0), NUM_DRAWS)))
    vectors = 2 * random.normal(random.key(1), (100_000, size))
    latents = jax.jit(adapter.inverse)({"inference_variables": vectors})
    assert all(bool(jnp.isfinite(x).all()) for x in latents.values())
    check_support(simulator, latents)


@PRIORS
@pytest.mark.parametrize(
    "name",
    [pytest.param("constrained", marks=pytest.mark.verify), "bounded pair", "eight schools"],
)
def test_log_det_is_that_of_autodiff(setup, name, prior_to_normal):
    simulator, adapter = setup(name, prior_to_normal)
    draws = latents_of(simulator, simulator.sample(random.key(4), NUM_DRAWS))
    latents = {name: x[:20] for name, x in draws.items()}
    vectors = jax.jit(adapter.forward)(latents)["inference_variables"]

    def coordinates(vector):
        values = adapter.inverse({"inference_variables": vector})
        return jnp.concatenate([independent(simulator, n, x) for n, x in values.items()])

    jacobians = jax.jit(jax.vmap(jax.jacfwd(coordinates)))(vectors)
    expected = -np.linalg.slogdet(np.asarray(jacobians, np.float64))[1]
    log_det = jax.jit(adapter.log_det_jac)(latents)
    assert log_det.shape == (20,)
    np.testing.assert_allclose(log_det, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("prior_to_normal", [True, False])
def test_density_in_site_space_integrates_to_one(setup, prior_to_normal):
    _, adapter = setup("bounded pair", prior_to_normal)
    # over the log of the scale and the logit of the share width / scale
    t, v = np.linspace(-12, 8, 401), np.linspace(-16, 16, 401)
    T, V = (jnp.asarray(a.ravel(), jnp.float32) for a in np.meshgrid(t, v, indexing="ij"))
    scale, share = jnp.exp(T), jax.nn.sigmoid(V)
    latents = {"scale": scale, "width": scale * share}
    z = jax.jit(adapter.forward)(latents)["inference_variables"]
    log_density = -0.5 * (z**2 + jnp.log(2 * jnp.pi)).sum(-1) + jax.jit(adapter.log_det_jac)(
        latents
    )
    change = scale * scale * share * jax.nn.sigmoid(-V)
    total = (
        jnp.where(change > 0, jnp.exp(log_density) * change, 0).sum()
        * (t[1] - t[0])
        * (v[1] - v[0])
    )
    assert abs(float(total) - 1) < 2e-3  # what lies beyond the grid, and float32


def test_prior_is_standard_normal(setup):
    simulator, adapter = setup("eight schools")
    draws = simulator.sample(random.key(5), 20_000)
    z = np.asarray(jax.jit(adapter.forward)(latents_of(simulator, draws))["inference_variables"])
    # mu and tau by their priors' quantiles: exactly standard, five standard errors of 20,000 draws
    error = 5 / np.sqrt(20_000)
    np.testing.assert_allclose(z[:, :2].mean(0), 0, atol=error)
    np.testing.assert_allclose(z[:, :2].std(0), 1, atol=error)


def test_order_is_that_of_the_trace(setup):
    simulator, adapter = setup("eight schools")
    latents = latents_of(simulator, simulator.sample(random.key(0), NUM_DRAWS))
    backwards = dict(reversed(latents.items()))
    np.testing.assert_array_equal(
        adapter(latents)["inference_variables"], adapter(backwards)["inference_variables"]
    )


def test_support_that_depends_on_a_site_left_out():
    simulator = npa.ModelSimulator(models.bounded_pair, 0.0)
    with pytest.raises(ValueError, match=r"'width'.*support depends.*`sites`"):
        npa.Adapter.for_posterior(simulator, sites=("width",))
    adapter = npa.Adapter.for_posterior(simulator, sites=("scale",))
    assert "width: not inferred: marginalized by simulation" in str(adapter)


@pytest.mark.verify
def test_prior_that_depends_on_a_site_left_out_goes_by_its_support():
    simulator = npa.ModelSimulator(models.eight_schools, models.SIGMA, models.EFFECTS)
    adapter = npa.Adapter.for_posterior(simulator, sites=("theta",))
    assert "theta: inferred, 8 numbers by its support" in str(adapter)
    theta = random.normal(random.key(0), (4, 8))
    vector = adapter({"theta": theta})
    np.testing.assert_allclose(adapter.inverse(vector)["theta"], theta, rtol=1e-4, atol=1e-4)


def test_discrete_latents_are_left_out_and_it_is_said():
    def mixture(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mu + 3 * z, 1), obs=y)

    simulator = npa.ModelSimulator(mixture, 0.0)
    adapter = npa.Adapter.for_posterior(simulator)
    assert "z: discrete, not inferred: marginalized by simulation" in str(adapter)
    assert size_of(adapter, {"mu": jnp.zeros(())}) == 1
    with pytest.raises(ValueError, match=r"'z' is discrete.*marginalized by simulation"):
        npa.Adapter.for_posterior(simulator, sites=("mu", "z"))


def test_supports_without_bijection_are_refused():
    def model(y):
        direction = numpyro.sample("direction", dist.ProjectedNormal(jnp.zeros(3)))
        numpyro.sample("y", dist.Normal(direction[0], 1), obs=y)

    simulator = npa.ModelSimulator(model, 0.0)
    with pytest.raises(ValueError, match=r"'direction'.*no bijection"):
        npa.Adapter.for_posterior(simulator)


@pytest.mark.parametrize("sites", [("nu",), ("mu", "nu"), ("y",), ()])
def test_unknown_sites(sites):
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(3))
    with pytest.raises(ValueError, match=r"`sites`: expected .*\['mu'\], got"):
        npa.Adapter.for_posterior(simulator, sites=sites)


def test_some_latents_without_the_others(setup):
    _, adapter = setup("bounded pair")
    with pytest.raises(ValueError, match=r"expected all latent sites.*\['width'\] are missing"):
        adapter({"scale": jnp.ones(())})


def test_batch_axes_must_agree(setup):
    _, adapter = setup("bounded pair")
    with pytest.raises(ValueError, match="same leading batch axes"):
        adapter({"scale": jnp.ones(3), "width": jnp.ones((3, 2))})


@pytest.mark.verify
def test_any_batch_axes_jit_and_grad(setup):
    simulator, adapter = setup("bounded pair")
    latents = latents_of(simulator, simulator.sample(random.key(0), (2, NUM_DRAWS // 2)))
    vector = adapter(latents)["inference_variables"]
    shape = (2, NUM_DRAWS // 2)
    assert vector.shape == (*shape, 2) and adapter.log_det_jac(latents).shape == shape
    np.testing.assert_allclose(
        jax.jit(adapter.forward)(latents)["inference_variables"], vector, rtol=1e-5, atol=1e-5
    )
    slopes = jax.grad(lambda values: adapter.log_det_jac(values).sum())(latents)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes.values())
