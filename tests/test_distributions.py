# SPDX-License-Identifier: Apache-2.0
"""The posterior as a NumPyro distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers

import numpyro_amortized as npa
from tests import models

Y = np.linspace(-1, 2, 6).astype(np.float32)
BATCH = np.stack([Y, -Y, Y + 1])


@pytest.fixture
def one(regression):
    return regression.posterior({"y": Y})


@pytest.fixture
def batch(regression):
    return regression.posterior({"y": BATCH})


def shapes(posterior, sample_shape):
    """Of draws, their densities and their sites, without computing any."""

    def all_of(key):
        draws = posterior.sample(key, sample_shape)
        return draws, posterior.log_prob(draws), posterior.sample_sites(key, sample_shape)

    return jax.eval_shape(all_of, random.key(0))


def test_shapes(one, batch):
    assert isinstance(one, npa.AmortizedPosterior) and isinstance(one, dist.Distribution)
    assert (one.batch_shape, one.event_shape) == ((), (3,))
    assert (batch.batch_shape, batch.event_shape) == ((3,), (3,))
    assert one.support is dist.constraints.real_vector
    for posterior in (one, batch):
        for sample_shape in ((), (2, 4)):
            draws, log_q, sites = shapes(posterior, sample_shape)
            assert draws.shape == (*sample_shape, *posterior.batch_shape, 3)
            assert log_q.shape == draws.shape[:-1]
            assert sites["intercept"].shape == draws.shape[:-1]
            assert sites["slope"].shape == (*draws.shape[:-1], 2)
            assert sites["mean"].shape == (*draws.shape[:-1], 6)


def test_draws_carry_the_density_that_they_have(batch):
    for posterior in (batch, batch.expand([2, 3]), batch.to_event(1), batch.mask(True)):
        draws, carried = posterior.sample_with_intermediates(random.key(0), (4,))
        expected = posterior.log_prob(draws)
        assert expected.shape == (4, *posterior.batch_shape)
        np.testing.assert_allclose(
            posterior.log_prob(draws, carried), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.verify
def test_density_differs_from_the_sites_by_the_jacobian(regression, batch):
    draws = batch.sample(random.key(0), (40,))
    sites = batch.constrain(draws)
    latents = {name: sites[name] for name in regression.inferred_sites}
    by_data = {name: jnp.moveaxis(value, 0, 1) for name, value in latents.items()}
    expected = regression.log_prob(by_data | {"y": BATCH}).T
    log_q = batch.log_prob(draws) + regression.adapter.log_det_jac(latents)
    np.testing.assert_allclose(log_q, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.verify
def test_same_distribution_as_sample(regression, one):
    draws = regression.sample(random.key(0), 4000, {"y": Y})
    sites = one.sample_sites(random.key(1), (4000,))
    for name in ("intercept", "slope"):
        sd = draws[name].std(0)
        # five standard errors of the difference of two means of 4,000 draws
        error = 5 * np.sqrt(2 / 4000)
        assert (jnp.abs(draws[name].mean(0) - sites[name].mean(0)) / sd < error).all()


def test_deterministic_sites_use_their_own_data_set(regression, batch):
    sites = batch.sample_sites(random.key(0), (5,))
    X = regression.source.args[0].astype(np.float32)
    expected = sites["intercept"][..., None] + sites["slope"] @ X.T
    np.testing.assert_allclose(sites["mean"], expected, rtol=1e-4, atol=1e-4)


def test_a_pytree_that_passes_jit(batch):
    leaves, treedef = jax.tree.flatten(batch)
    again = jax.tree.unflatten(treedef, leaves)
    value = batch.sample(random.key(0))
    expected = batch.log_prob(value)
    np.testing.assert_array_equal(again.log_prob(value), expected)
    through = jax.jit(lambda d, x: (d, d.log_prob(x)))(batch, value)
    np.testing.assert_allclose(through[1], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(through[0].log_prob(value), expected, rtol=1e-4, atol=1e-4)
    mapped = jax.vmap(lambda d, x: d.log_prob(x))(batch, value)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-4)


def test_is_a_site_of_a_model(one):
    def model():
        return numpyro.sample("z", one)

    trace = handlers.trace(handlers.seed(model, random.key(0))).get_trace()
    assert trace["z"]["value"].shape == (3,)
    assert handlers.substitute(handlers.seed(model, 0), {"z": jnp.zeros(3)})().shape == (3,)


@pytest.mark.verify
def test_frozen_at_its_time(approximate):
    approximator = approximate(models.normal_mean, np.zeros(4))
    fit = {"epochs": 1, "num_batches": 10, "progress_bar": False}
    approximator.fit(random.key(0), **fit)
    posterior = approximator.posterior({"y": np.ones(4)})
    before = posterior.log_prob(jnp.zeros(1))
    approximator.fit(random.key(1), **fit)
    np.testing.assert_array_equal(posterior.log_prob(jnp.zeros(1)), before)
    assert approximator.posterior({"y": np.ones(4)}).log_prob(jnp.zeros(1)) != before
