# SPDX-License-Identifier: Apache-2.0
"""The self-consistency loss against its value for a conjugate model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.approximators.self_consistency import _FLOOR, _variance
from numpyro_amortized.networks.base import DensityNetwork
from tests import models

NUM_SAMPLES, NUM_DATASETS = 4000, 5
# relative, of a variance: u**2 has a kurtosis of 15; its bounded value has less
ERROR = 4 * np.sqrt(14 / (NUM_SAMPLES * NUM_DATASETS))


def conjugate(y):
    theta = numpyro.sample("theta", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(theta, 1), obs=y)


class ScaledPosterior(DensityNetwork):
    """The exact posterior of the conjugate model, N(y / 2, 1 / 2), of another standard deviation.

    :param factor: of the standard deviation.
    :param origin: standardized value of ``y = 0``.
    :param slope: of that in ``y``.
    """

    def __init__(self, factor, origin, slope):
        self.size, self.condition_size = 1, 1
        self.factor = nnx.Param(jnp.asarray(factor))
        self.origin, self.slope = float(origin), float(slope)

    def _posterior(self, context):
        y = (context - self.origin) / self.slope
        return dist.Normal(y / 2, self.factor * np.sqrt(0.5)).to_event(1)

    def loss(self, rng_key, variables, context):
        return -self.log_prob(variables, context)

    def log_prob(self, variables, context):
        return self._posterior(context).log_prob(variables)

    def sample(self, rng_key, context):
        return self._posterior(context).sample(rng_key)

    def sample_and_log_prob(self, rng_key, context):
        draws = self.sample(rng_key, context)
        return draws, self.log_prob(draws, context)


@pytest.fixture(scope="module")
def exact():
    """An approximator of the conjugate model, and networks by factor of the posterior's sd."""
    approximator = npa.ContinuousApproximator(npa.ModelSimulator(conjugate, 0.0))
    inputs = [approximator.adapter.forward({"y": jnp.array(y)}) for y in (0.0, 1.0)]
    origin, one = (float(x["inference_conditions"][0]) for x in inputs)

    def modules(factor):
        return nnx.Dict(inference_network=ScaledPosterior(factor, origin, one - origin))

    return approximator, modules


def loss_of(exact, factor, **options):
    approximator, modules = exact
    spec = npa.SelfConsistency(num_samples=NUM_SAMPLES, num_datasets=NUM_DATASETS, **options)
    inputs = {"site_values": {"y": jnp.linspace(-2, 3, 2 * NUM_DATASETS)}}
    penalty = spec.penalty(approximator)
    return jax.jit(lambda f: penalty(modules(f), random.key(0), inputs))(jnp.asarray(factor))


def variance(factor):
    """Of the log ratio ``(factor**2 - 1) / 2 * u**2`` and a constant, with u standard normal."""
    return (factor**2 - 1) ** 2 / 2


@pytest.mark.verify
def test_it_is_zero_at_the_exact_posterior_alone(exact):
    far = {"y": np.linspace(10, 20, NUM_DATASETS)}
    assert 0 <= loss_of(exact, 1.0) < 1e-9
    assert 0 <= loss_of(exact, 1.0, data=far) < 1e-7  # log densities of -100 have fewer digits
    for factor in (0.7, 1.3):
        expected = 2 * (np.sqrt(1 + variance(factor)) - 1)
        assert abs(loss_of(exact, factor) / expected - 1) < ERROR
        both = loss_of(exact, factor, data=far, weight=3.0)
        assert abs(both / (6 * expected) - 1) < ERROR


def test_its_gradient_is_twice_that_of_the_divergence(exact):
    """``KL(q | p) = (factor**2 - 1) / 2 - log(factor)``; true only of draws that are held fixed.

    Of a variance v; of the bounded one it is that by ``sqrt(1 + v)``.
    """
    factor = 1.3
    slope = jax.grad(lambda f: loss_of(exact, f))(factor)
    expected = 2 * (factor - 1 / factor) / np.sqrt(1 + variance(factor))
    assert abs(slope / expected - 1) < ERROR


def test_the_pull_of_a_posterior_that_is_far_off_is_bounded(exact):
    """Of a variance of the log ratio, the pull would grow with the square of the factor."""
    pull = jax.vmap(jax.grad(lambda f: loss_of(exact, jnp.exp(f))))(jnp.array([2.0, 20.0]))
    assert np.isfinite(pull).all() and 0 < pull[1] < 2 * _FLOOR
    assert pull[0] > 0


def test_draws_without_a_density_are_pushed_away():
    log_p = jnp.array([[1.0, -jnp.inf], [-jnp.inf, -jnp.inf], [3.0, -jnp.inf]])
    values, pull = jax.value_and_grad(lambda q: _variance(log_p, q).sum())(jnp.zeros((3, 2)))
    best = np.array([1.0, 3 - _FLOOR, 3.0])
    np.testing.assert_allclose(values, best.var(ddof=1), rtol=1e-5)
    assert pull[1, 0] > 0 > max(pull[0, 0], pull[2, 0])  # descent lowers log q of that draw
    assert (pull[:, 1] == 0).all()  # where there is no density at all, nothing is learned


@pytest.mark.verify
def test_a_fit_on_a_bank_with_unlabelled_data(approximate):
    approximator = approximate(models.regression, models.DESIGN, np.zeros(6))
    bank = approximator.source.sample(random.key(0), 64)
    run = {"epochs": 2, "batch_size": 16, "dataset": bank, "progress_bar": False}
    data = {"y": np.asarray(bank["y"][:10]) + 3}
    with_data = npa.SelfConsistency(num_samples=3, num_datasets=4, data=data)
    history = approximator.fit(random.key(1), self_consistency=with_data, **run)
    assert np.isfinite(history.loss).all() and np.isfinite(history.validation_loss).all()
    assert history.skipped_steps == 0


def without_density(y):
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.deterministic("y", jnp.tanh(x))


def test_what_is_refused(exact):
    approximator, _ = exact
    implicit = npa.ContinuousApproximator(
        npa.ModelSimulator(without_density, None, observed=("y",))
    )
    spec = npa.SelfConsistency()
    with pytest.raises(ValueError, match=r"Site 'y' is observed, but computed.*not known"):
        implicit.fit(random.key(0), self_consistency=spec)
    with pytest.raises(ValueError, match="data sets with a leading axis, got a single one"):
        npa.SelfConsistency(data={"y": 1.0}).penalty(approximator)
    with pytest.raises(ValueError, match=r"expected the sites \['y'\]"):
        npa.SelfConsistency(data={"z": np.ones(3)}).penalty(approximator)
    simulator = npa.LambdaSimulator(
        lambda rng_key: {"x": random.normal(rng_key), "y": jnp.ones(())}
    )
    adapter = npa.Adapter().concatenate(["x"], into="inference_variables")
    adapter = adapter.concatenate(["y"], into="inference_conditions")
    black_box = npa.ContinuousApproximator(simulator, adapter=adapter)
    with pytest.raises(TypeError, match=r"NumPyro model.*got one of JaxSimulator"):
        black_box.fit(random.key(0), self_consistency=spec)
    ratio = npa.RatioApproximator(approximator.source)
    with pytest.raises(TypeError, match="posterior density, got RatioApproximator"):
        ratio.fit(random.key(0), self_consistency=spec)
    for options, message in (({"num_samples": 1}, "at least 2"), ({"weight": 0.0}, "positive")):
        with pytest.raises(ValueError, match=message):
            npa.SelfConsistency(**options)
