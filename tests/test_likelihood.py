# SPDX-License-Identifier: Apache-2.0
"""Learned likelihoods and ratios as parts of NumPyro models."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive, log_likelihood
from numpyro.infer.util import log_density

import numpyro_amortized as npa
from tests import models, observations
from tests.conftest import FLOW, SETS, optimized

Y = np.random.default_rng(0).normal(0.7, 1, observations.NUM_OBSERVATIONS).astype(np.float32)


def trained(name, **options):
    simulator = observations.SIMULATORS[name]()
    adapter = npa.Adapter.for_likelihood(simulator)
    approximator = npa.ContinuousApproximator(simulator, adapter=adapter, inference_network=FLOW)
    approximator.fit(random.key(0), progress_bar=False, batch_size=64, **options)
    return approximator


@pytest.fixture(scope="module")
def normal():
    """Hardly trained: for what holds of any network."""
    return trained("normal", epochs=1, num_batches=20)


@pytest.fixture(scope="module")
def trained_normal():
    """Trained well."""
    with optimized():
        return trained("normal", epochs=10, num_batches=150)


@pytest.fixture(scope="module")
def race():
    """Hardly trained."""
    return trained("race", epochs=1, num_batches=20)


@pytest.fixture(scope="module")
def poisson():
    """Hardly trained."""
    return trained("poisson", epochs=1, num_batches=20)


@pytest.mark.verify
def test_nuts_agrees_with_the_exact_posterior(trained_normal):
    mean, sd = models.normal_mean_posterior(Y)
    model = partial(observations.learned_normal, trained_normal)
    draws = observations.nuts(model, Y, num_warmup=200, num_samples=500)["mu"]
    # the Monte Carlo error of the mean of 2,000 draws is near 0.04 sd; the network is small and
    # trained for seconds: the full one is held to 0.1 sd by `make verify`
    assert abs(draws.mean() - mean) < 0.25 * sd
    assert abs(draws.std() / sd - 1) < 0.2


@pytest.mark.verify
def test_log_density_is_that_of_the_model(trained_normal):
    mu = jnp.array([-1.0, 0.0, 0.8])
    y = jnp.linspace(-1.5, 2, 8)
    log_q = trained_normal.log_prob({"mu": mu, "y": jnp.broadcast_to(y, (3, 8))})
    assert log_q.shape == (3, 8)
    expected = dist.Normal(mu[:, None], 1).log_prob(y)
    # per observation, within what a small network reaches
    assert float(jnp.abs(log_q - expected).mean()) < 0.06
    by_distribution = trained_normal.likelihood({"mu": mu[:, None]}).log_prob(y)
    np.testing.assert_allclose(by_distribution, log_q, rtol=1e-4, atol=1e-4)


@pytest.mark.verify
def test_gradient_is_that_of_finite_differences(normal):
    def total(mu):
        return normal.likelihood({"mu": mu}).log_prob(Y).sum()

    step = 3e-2  # float32: rounding of a sum near 30 is near 1e-5, divided by the step
    numeric = (total(0.4 + step) - total(0.4 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(0.4), numeric, rtol=1e-2, atol=2e-2)


def test_density_integrates_to_one(normal):
    y = jnp.linspace(-12, 12, 4001)
    likelihood = normal.likelihood({"mu": jnp.array([-1.0, 0.5])[:, None]})
    totals = jnp.exp(likelihood.log_prob(y)).sum(-1) * (y[1] - y[0])
    np.testing.assert_allclose(totals, 1, atol=1e-3)


@pytest.mark.verify
def test_joint_density_of_two_sites_integrates_to_one(race):
    """Over the choices, and the log of the times."""
    latents = {"drift": 0.5, "speed": -0.3}
    log_time = jnp.linspace(-9, 9, 4001)
    total = 0.0
    for choice in (0, 1):
        share = jnp.exp(race.likelihood(latents).log_prob(choice))
        time = race.likelihood(latents | {"choice": choice})
        density = jnp.exp(time.log_prob(jnp.exp(log_time)) + log_time)
        total += share * density.sum() * (log_time[1] - log_time[0])
    np.testing.assert_allclose(total, 1, atol=2e-3)


@pytest.mark.verify
def test_probabilities_of_counts_add_up_to_one(poisson):
    values = {"intercept": 0.5, "slope": 0.4, "x": jnp.array([-1.0, 0.0, 2.0])[:, None]}
    likelihood = poisson.likelihood(values)
    assert likelihood.batch_shape == (3, 1)
    log_probs = likelihood.log_prob(jnp.arange(400))
    np.testing.assert_allclose(jnp.exp(log_probs).sum(-1), 1, atol=1e-4)


@pytest.mark.verify
def test_draws_have_the_probabilities_of_their_density(poisson):
    likelihood = poisson.likelihood({"intercept": 0.5, "slope": 0.4, "x": 0.3})
    draws = np.asarray(likelihood.sample(random.key(0), (20_000,)))
    assert draws.dtype == np.int32 and draws.min() >= 0
    shares = np.bincount(draws, minlength=6)[:6] / 20_000
    expected = np.exp(likelihood.log_prob(jnp.arange(6)))
    # five standard errors of a share of 20,000 draws
    assert (np.abs(shares - expected) < 5 * np.sqrt(0.25 / 20_000)).all()


@pytest.mark.verify
def test_sites_chain_in_trace_order(race):
    latents = {"drift": jnp.array([0.3, -0.2]), "speed": jnp.zeros(2)}
    choice, time = jnp.array([1, 0]), jnp.array([0.7, 1.9])
    first = race.likelihood(latents)
    second = race.likelihood(latents | {"choice": choice})
    assert (first.batch_shape, second.batch_shape) == ((2,), (2,))
    assert first.support.is_discrete and not second.support.is_discrete
    total = first.log_prob(choice) + second.log_prob(time)
    joint = race.log_prob(latents | {"choice": choice, "time": time})
    np.testing.assert_allclose(total, joint, rtol=1e-4, atol=1e-4)
    draws = race.sample(random.key(0), 5, {"drift": 0.1, "speed": 0.2})
    assert draws["choice"].shape == draws["time"].shape == (5,)
    assert (draws["time"] > 0).all() and set(np.unique(draws["choice"])) <= {0, 1}
    with pytest.raises(ValueError, match=r"expected values of \['drift', 'speed'\]"):
        race.likelihood({"drift": 0.1})


@pytest.mark.verify
def test_predictive_and_log_likelihood(normal):
    model = partial(observations.learned_normal, normal)
    draws = {"mu": jnp.linspace(-1, 1, 6)}
    simulated = Predictive(handlers.uncondition(model), draws)(random.key(0), Y)
    assert simulated["y"].shape == (6, len(Y))
    terms = log_likelihood(model, draws, Y)["y"]
    expected = normal.likelihood({"mu": draws["mu"][:, None]}).log_prob(Y)
    np.testing.assert_allclose(terms, expected, rtol=1e-4, atol=1e-4)


def test_inside_scan_and_after_pickling(normal):
    def model(y):
        def step(mu, y):
            mu = numpyro.sample("mu", dist.Normal(mu, 0.3))
            numpyro.sample("y", normal.likelihood({"mu": mu}), obs=y)
            return mu, None

        scan(step, 0.0, y)

    trace = handlers.trace(handlers.seed(model, random.key(0))).get_trace(jnp.asarray(Y))
    terms = trace["y"]["fn"].log_prob(Y)
    expected = normal.likelihood({"mu": trace["mu"]["value"]}).log_prob(Y)
    np.testing.assert_allclose(terms, expected, rtol=1e-4, atol=1e-4)
    again = pickle.loads(pickle.dumps(trace["y"]["fn"]))
    np.testing.assert_allclose(again.log_prob(Y), expected, rtol=1e-4, atol=1e-4)


def test_equal_structure_under_jit_and_frozen_at_its_time(normal):
    latents = {"mu": 0.4}
    first = normal.likelihood(latents)
    through = jax.jit(normal.likelihood)(latents)
    assert jax.tree.structure(first) == jax.tree.structure(through)
    before = first.log_prob(1)
    normal.fit(random.key(0), epochs=1, num_batches=20, batch_size=64, progress_bar=False)
    np.testing.assert_array_equal(first.log_prob(1), before)
    assert normal.likelihood(latents).log_prob(1) != before


def test_what_was_trained_for_one_is_refused_for_the_other(normal, approximate):
    posterior = approximate(models.normal_mean, Y)
    with pytest.raises(ValueError, match="learned a likelihood, not a posterior"):
        normal.posterior({"mu": 0.0})
    with pytest.raises(ValueError, match=r"Adapter\.for_likelihood"):
        posterior.likelihood({"mu": 0.0})


@pytest.fixture(scope="module")
def ratio():
    with optimized():
        simulator = observations.SIMULATORS["normal"]()
        approximator = npa.RatioApproximator(simulator, summary_network=SETS)
        approximator.fit(random.key(0), epochs=10, num_batches=150, progress_bar=False)
    return approximator


@pytest.mark.verify
def test_ratio_in_a_model(ratio):
    """The posterior on a grid, from the model's density; under NUTS by `make verify`."""

    def log_joint(mu):
        return log_density(partial(observations.ratio_normal, ratio), (Y,), {}, {"mu": mu})[0]

    mean, sd = models.normal_mean_posterior(Y)
    grid = jnp.linspace(mean - 6 * sd, mean + 6 * sd, 401)
    log_joints, slopes = jax.jit(jax.vmap(jax.value_and_grad(log_joint)))(grid)
    weights = jax.nn.softmax(log_joints)
    center = (weights * grid).sum()
    # the bounds of a small network, trained for seconds
    assert abs(center - mean) < 0.3 * sd
    assert abs(jnp.sqrt((weights * (grid - center) ** 2).sum()) / sd - 1) < 0.3
    numeric = (log_joints[2:] - log_joints[:-2]) / (grid[2] - grid[0])
    # rounding of a log density near 30 over steps of 0.013, and the curvature over a step
    np.testing.assert_allclose(slopes[1:-1], numeric, rtol=2e-2, atol=5e-2)


@pytest.mark.verify
def test_ratio_shapes_and_normalization(ratio):
    y = np.stack([Y, -Y, Y + 0.5])
    mu = random.normal(random.key(0), (3, 4000))
    log_ratio = ratio.log_ratio({"mu": mu, "y": y})
    assert log_ratio.shape == (3, 4000)
    assert ratio.log_ratio({"mu": 0.1, "y": Y}).shape == ()
    assert ratio.log_ratio({"mu": mu[:, 0], "y": y}).shape == (3,)
    # E[p(y | mu) / p(y)] over the prior is 1; its sd is near 2, and the network is small
    assert (jnp.abs(jnp.exp(log_ratio).mean(-1) - 1) < 0.35).all()


@pytest.mark.parametrize("options, words", [({"K": 0}, "K"), ({"gamma": 0.0}, "gamma")])
def test_ratio_options(options, words):
    with pytest.raises(ValueError, match=words):
        npa.RatioApproximator(observations.SIMULATORS["normal"](), **options)
