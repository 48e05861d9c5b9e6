# SPDX-License-Identifier: Apache-2.0
"""Shapes, keys, batches and transformations of the trained approximator."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from tests import models

Y = np.linspace(-1, 2, 6).astype(np.float32)
BATCH = np.stack([Y, -Y, Y + 1])


def test_one_data_set(regression):
    draws = regression.sample(random.key(0), 7, {"y": Y})
    shapes = {name: value.shape for name, value in draws.items()}
    assert shapes == {"intercept": (7,), "slope": (7, 2), "mean": (7, 6)}


def test_batch_of_data_sets(regression):
    draws = regression.sample(random.key(0), 7, {"y": BATCH})
    shapes = {name: value.shape for name, value in draws.items()}
    assert shapes == {"intercept": (3, 7), "slope": (3, 7, 2), "mean": (3, 7, 6)}
    one = regression.sample(random.key(0), 7, {"y": BATCH[:1]})
    assert one["slope"].shape == (1, 7, 2)


def test_deterministic_sites_belong_to_their_draws(regression):
    draws = regression.sample(random.key(0), 50, {"y": Y})
    expected = draws["intercept"][:, None] + draws["slope"] @ models.DESIGN.T.astype(np.float32)
    np.testing.assert_allclose(draws["mean"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.verify
def test_deterministic_sites_of_marginalized_latents_are_left_out(approximate):
    def model(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        b = numpyro.sample("b", dist.Normal(0, 1))
        numpyro.deterministic("twice", 2 * a)
        numpyro.deterministic("both", a + b)
        numpyro.sample("y", dist.Normal(a + b, 1), obs=y)

    approximator = approximate(model, 0.0, sites=("a",))
    approximator.fit(random.key(0), epochs=1, num_batches=5, progress_bar=False)
    assert approximator.inferred_sites == ("a",)
    assert set(approximator.sample(random.key(0), 3, {"y": 1.0})) == {"a", "twice"}
    tree = approximator.to_inference_data(random.key(0), {"y": 1.0}, num_samples=16)
    assert "log_likelihood" not in tree.children and "log_prior" in tree.children


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_changes_nothing(regression, batch_size):
    expected = regression.sample(random.key(3), 20, {"y": BATCH})
    draws = regression.sample(random.key(3), 20, {"y": BATCH}, batch_size=batch_size)
    for name, value in expected.items():
        np.testing.assert_allclose(draws[name], value, rtol=1e-4, atol=1e-4)


def test_keys_typed_and_raw(regression):
    typed = regression.sample(random.key(5), 4, {"y": Y})
    raw = regression.sample(random.PRNGKey(5), 4, {"y": Y})
    other = regression.sample(random.key(6), 4, {"y": Y})
    np.testing.assert_array_equal(typed["slope"], raw["slope"])
    assert (typed["slope"] != other["slope"]).all()
    for bad in (5, None, random.split(random.key(0))):
        with pytest.raises(TypeError, match="rng_key: expected one key"):
            regression.sample(bad, 4, {"y": Y})


def test_data_sets_of_a_batch_get_draws_of_their_own(regression):
    draws = regression.sample(random.key(0), 5, {"y": np.stack([Y, Y])})
    assert (draws["intercept"][0] != draws["intercept"][1]).all()


def test_log_prob_shapes(regression):
    draws = regression.sample(random.key(0), 7, {"y": BATCH})
    full = regression.log_prob(draws | {"y": BATCH})
    assert full.shape == (3, 7)
    first = {name: value[:, 0] for name, value in draws.items()}
    np.testing.assert_allclose(regression.log_prob(first | {"y": BATCH}), full[:, 0], rtol=1e-4)
    one = {name: value[0] for name, value in draws.items()}
    log_q = regression.log_prob(one | {"y": Y})
    assert log_q.shape == (7,)
    np.testing.assert_allclose(log_q, full[0], rtol=1e-4, atol=1e-4)
    scalar = regression.log_prob({name: value[0, 0] for name, value in draws.items()} | {"y": Y})
    assert scalar.shape == ()


@pytest.mark.parametrize(
    "name, y",
    [
        ("regression", BATCH),
        pytest.param("hierarchy", np.ones((3, 8)), marks=pytest.mark.verify),
    ],
)
def test_draws_come_with_their_density(request, name, y):
    approximator = request.getfixturevalue(name)
    draws, log_q = approximator.sample_and_log_prob(random.key(0), 50, {"y": y})
    assert log_q.shape == (3, 50)
    latents = {name: draws[name] for name in approximator.inferred_sites}
    error = np.abs(approximator.log_prob(latents | {"y": y}) - log_q) / (1 + np.abs(log_q))
    # a few draws in the tails of a support lose digits in float32
    assert np.quantile(error, 0.95) < 2e-3


@pytest.mark.verify
def test_draws_stay_in_their_supports(constrained):
    draws = constrained.sample(random.key(0), 25_000, {"y": np.zeros((4, 4))})
    latents = {name: draws[name] for name in constrained.inferred_sites}
    outside = models.outside_support(constrained.source, latents)
    assert outside == dict.fromkeys(latents, 0)


def test_log_prob_is_traceable(regression):
    draws = regression.sample(random.key(0), 4, {"y": Y})
    latents = {name: draws[name] for name in regression.inferred_sites}

    def log_q(latents, y):
        return regression.log_prob(latents | {"y": y})

    expected = log_q(latents, Y)
    np.testing.assert_allclose(jax.jit(log_q)(latents, Y), expected, rtol=1e-4, atol=1e-4)
    mapped = jax.vmap(log_q, in_axes=(None, 0))(latents, jnp.asarray(BATCH))
    np.testing.assert_allclose(mapped[0], expected, rtol=1e-4, atol=1e-4)
    value, slope = jax.value_and_grad(lambda z: log_q(z, Y).sum())(latents)
    step = 1e-2
    bumped = latents | {"intercept": latents["intercept"] + step}
    np.testing.assert_allclose(
        slope["intercept"].sum() * step, log_q(bumped, Y).sum() - value, rtol=0.2, atol=2e-2
    )
    by_data = jax.grad(lambda y: log_q(latents, y).sum())(jnp.asarray(Y))
    assert all(bool(jnp.isfinite(g).all()) for g in (*slope.values(), by_data))


def test_the_second_call_compiles_nothing(approximate, compilations):
    approximator = approximate(models.normal_mean, np.zeros(10))
    fit = {"epochs": 1, "num_batches": 3, "progress_bar": False}
    approximator.fit(random.key(0), **fit)
    data = [np.random.default_rng(seed).normal(size=(5, 10)) for seed in range(3)]
    keys = [random.key(seed) for seed in range(3)]
    latents = np.zeros(5)

    def use(i):
        draws = approximator.sample(keys[i], 50, {"y": data[i]})
        jax.block_until_ready([draws, approximator.log_prob({"mu": latents + i, "y": data[i]})])

    use(0)
    before = len(compilations)
    assert before > 0
    use(1)
    assert len(compilations) == before
    approximator.fit(random.key(1), **fit)
    before = len(compilations)
    use(2)
    assert len(compilations) == before


def test_nothing_passed_in_is_changed(regression):
    data = {"y": BATCH.copy()}
    before = jax.tree.map(np.array, regression.source.kwargs), regression.adapter
    regression.sample(random.key(0), 4, data)
    regression.to_inference_data(random.key(0), data, num_samples=16)
    assert set(data) == {"y"}
    np.testing.assert_array_equal(data["y"], BATCH)
    assert regression.adapter is before[1]


def test_print_explains(hierarchy, normal_mean):
    text = str(hierarchy)
    for words in ("mu: inferred", "tau: inferred", "theta: inferred, 8 numbers", "y: conditions"):
        assert words in text
    assert "CouplingFlow" in text and "summary network" not in text
    text = str(normal_mean)
    assert "one set of members" in text and "DeepSet" in text and "override:" in text


def test_amortize_derives_everything():
    approximator = npa.amortize(models.eight_schools, sigma=models.SIGMA, y=models.EFFECTS)
    assert isinstance(approximator, npa.ContinuousApproximator)
    assert approximator.inferred_sites == ("mu", "tau", "theta")
    assert approximator.inference_network is npa.networks.CouplingFlow


def test_a_model_without_arguments_is_a_source():
    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=2.0)

    assert npa.ContinuousApproximator(model).source.sites["y"].role == "observed"
    with pytest.raises(
        TypeError, match="source: expected a simulator, a data set or a NumPyro model"
    ):
        npa.ContinuousApproximator(3)
