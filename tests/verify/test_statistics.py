# SPDX-License-Identifier: Apache-2.0
"""Long statistical checks of full-size networks, run by ``make verify``."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from scipy import stats

import numpyro_amortized as npa
from examples import quickstart
from numpyro_amortized.networks import CouplingFlow
from tests import models

pytestmark = pytest.mark.verify


def test_quickstart_agrees_with_nuts(eight_schools_by_nuts):
    """Means within 0.15 posterior standard deviations, standard deviations within 15 %."""
    effects, errors = quickstart.EFFECTS, quickstart.STANDARD_ERRORS
    approximator = npa.amortize(quickstart.eight_schools, sigma=errors, y=effects)
    approximator.fit(random.key(0), epochs=100, progress_bar=False)
    draws = quickstart.columns(approximator.sample(random.key(2), 20_000, {"y": effects}))
    for name, values in draws.items():
        sd = eight_schools_by_nuts[name].std()
        assert abs(values.mean() - eight_schools_by_nuts[name].mean()) < 0.15 * sd, name
        assert abs(values.std() / sd - 1) < 0.15, name


@pytest.fixture(scope="module")
def constrained():
    """Trained at full size."""
    approximator = npa.amortize(models.constrained, np.zeros(4))
    approximator.fit(random.key(0), epochs=30, progress_bar=False)
    return approximator


def test_trained_draws_stay_in_their_supports(constrained):
    draws = constrained.sample(
        random.key(1),
        25_000,
        {"y": np.array([np.zeros(4), np.ones(4), -np.ones(4), 9 * np.ones(4)])},
    )
    latents = {name: draws[name] for name in constrained.inferred_sites}
    outside = models.outside_support(constrained.source, latents)
    assert outside == dict.fromkeys(latents, 0)


def test_calibration_of_constrained_sites(constrained):
    truth = constrained.source.sample(random.key(2), 500)
    draws = constrained.sample(random.key(3), 399, {"y": truth["y"]}, batch_size=100)
    p_values = {}
    for name in constrained.inferred_sites:
        x, samples = np.asarray(truth[name]), np.asarray(draws[name])
        x, samples = x.reshape(500, -1), samples.reshape(500, 399, -1)
        for i in range(x.shape[1]):
            if x[:, i].std() == 0 or samples[..., i].std() == 0:
                continue  # the triangle of zeros of a Cholesky factor
            ranks = (samples[..., i] < x[:, i, None]).sum(1)
            counts = np.bincount(ranks // 20, minlength=20)
            p_values[f"{name}[{i}]"] = stats.chisquare(counts).pvalue
    # Holm's correction at the level of 1 %
    thresholds = 0.01 / np.arange(len(p_values), 0, -1)
    assert (np.sort([*p_values.values()]) > thresholds).all(), p_values


def test_density_of_a_dependent_support_integrates_to_one():
    simulator = npa.ModelSimulator(models.bounded_pair, 0.0)
    approximator = npa.ContinuousApproximator(simulator, inference_network=CouplingFlow)
    approximator.fit(random.key(0), epochs=20, progress_bar=False)
    t, v = np.linspace(-12, 6, 301), np.linspace(-16, 16, 301)
    T, V = (jnp.asarray(a.ravel(), jnp.float32) for a in np.meshgrid(t, v, indexing="ij"))
    scale, share = jnp.exp(T), jax.nn.sigmoid(V)
    change = np.asarray(scale * scale * share * jax.nn.sigmoid(-V))
    for y in (-1.0, 0.5, 3.0):
        log_q = approximator.log_prob({"scale": scale, "width": scale * share, "y": y})
        values = np.where(change > 0, np.exp(log_q) * change, 0)
        total = values.sum() * (t[1] - t[0]) * (v[1] - v[0])
        assert abs(total - 1) < 0.01


def mean_of(n, x=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("N", n):
        numpyro.sample("x", dist.Normal(mu, 2), obs=x)


def test_one_training_serves_sample_sizes_from_5_to_200(compilations):
    simulator = npa.ModelSimulator(mean_of, observed=("x",), sizes={"n": (5, 200)})
    approximator = npa.ContinuousApproximator(simulator)
    before = len(compilations)
    approximator.fit(random.key(0), batch_size=128, progress_bar=False)
    rng = np.random.default_rng(1)
    for size in (5, 50, 200):
        x = rng.normal(rng.normal(size=(500, 1)), 2, size=(500, size))
        draws = np.asarray(approximator.sample(random.key(2), 400, {"x": x})["mu"])
        precision = 1 + size / 4
        mean, sd = x.sum(1) / 4 / precision, precision**-0.5
        errors = (draws.mean(1) - mean) / sd
        print(size, np.sqrt((errors**2).mean()), draws.std(1).mean() / sd)
        # 400 draws add 0.05 in quadrature to the root mean square, and 0.035 to each sd
        assert np.sqrt((errors**2).mean()) < 0.15
        assert abs(draws.std(1).mean() / sd - 1) < 0.1
    print(f"{len(compilations) - before} programs compiled")
