# SPDX-License-Identifier: Apache-2.0
"""Simulations follow the model, in loops and branches too, and are reproducible from one key."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

from numpyro_amortized.simulators import ModelSimulator

DATA = np.linspace(0, 1, 51)


def autoregression(y):
    def step(previous, y):
        noise = numpyro.sample("noise", dist.Normal(0, 1))
        y = numpyro.sample("y", dist.Normal(0.9 * previous, 1), obs=y)
        numpyro.deterministic("excess", y - previous)
        return y, noise

    numpyro.sample("x", dist.Normal(0, 1))
    scan(step, jnp.zeros(()), y)


def branching(y):
    def branch(loc):
        return lambda _: numpyro.sample("y", dist.Normal(loc, 0.1), obs=y)

    side = numpyro.sample("side", dist.Bernoulli(0.25))
    numpyro.deterministic("twice", 2 * cond(side == 1, branch(5.0), branch(-5.0), None))


def test_scan_feeds_simulated_values_back():
    simulator = ModelSimulator(autoregression, DATA)
    y = simulator.sample(random.key(0), 40_000)["y"]
    # sd_t^2 = sum of .81^i for i < t; the standard error of the sd is 2.29 / sqrt(80,000) = .008.
    assert abs(y[:, 50].std() - np.sqrt(np.sum(0.81 ** np.arange(51)))) < 0.04
    site = simulator.sites["y"]
    assert site.scanned and site.shape == (51,) and site.data_sized == (0,) and site.event_dim == 0
    assert not simulator.sites["x"].scanned
    np.testing.assert_allclose(simulator.data["y"], DATA, rtol=1e-6)


def test_condition_reaches_into_scan():
    def model(y):
        def step(previous, _):
            y = numpyro.sample("y", dist.Normal(0.9 * previous + rate, 1))
            numpyro.sample("noise", dist.Normal(0, 1))
            return y, None

        rate = numpyro.sample("rate", dist.Normal(0, 0.001))
        scan(step, jnp.zeros(()), None, length=51)

    noise = np.arange(51.0)
    simulator = ModelSimulator(handlers.condition(model, {"y": DATA, "noise": noise}), None)
    assert simulator.fixed == ("noise",)
    assert [*simulator.sites] == ["rate", "y"] and simulator.sites["y"].role == "observed"
    y = simulator.sample(random.key(0), 40_000)["y"]
    assert abs(y[:, 50].std() - 2.29) < 0.04  # five standard errors
    np.testing.assert_allclose(simulator.trace(random.key(0))["noise"]["value"], noise)


@pytest.mark.parametrize("scoped", [False, True])
def test_values_are_set_inside_scan(scoped):
    model = handlers.scope(autoregression, prefix="s") if scoped else autoregression
    prefix = "s/" if scoped else ""
    simulator = ModelSimulator(model, DATA)
    values = {f"{prefix}y": jnp.arange(51.0), f"{prefix}x": 3.0}
    trace = simulator.trace(random.key(0), values)
    np.testing.assert_allclose(trace[f"{prefix}y"]["value"], jnp.arange(51.0))
    previous = np.concatenate([[0], np.arange(50.0)])
    np.testing.assert_allclose(trace[f"{prefix}y"]["fn"].loc, 0.9 * previous, rtol=1e-5)
    np.testing.assert_allclose(trace[f"{prefix}excess"]["value"], np.arange(51) - previous)
    assert trace[f"{prefix}x"]["value"] == 3


def test_deterministic_values_are_set_inside_scan():
    simulator = ModelSimulator(autoregression, DATA)
    trace = simulator.trace(random.key(0), {"excess": jnp.ones(51)})
    np.testing.assert_array_equal(trace["excess"]["value"], np.ones(51))


def test_plates_inside_scan():
    def model(y):
        def step(previous, y):
            with numpyro.plate("series", 2):
                y = numpyro.sample("y", dist.Normal(0.9 * previous + drift, 1), obs=y)
            return y, None

        drift = numpyro.sample("drift", dist.Normal(0, 1))
        scan(step, jnp.zeros(2), y)

    site = ModelSimulator(model, np.ones((4, 2))).sites["y"]
    assert site.shape == (4, 2) and site.plates == (("series", -1, 2),) and site.scanned
    assert site.data_sized == (0,)


def test_cond_simulates_both_branches():
    draws = ModelSimulator(branching, 5.0).sample(random.key(0), 4000)
    side = draws["side"] == 1
    assert np.all(np.where(side, draws["y"], -draws["y"]) > 4)
    assert abs(side.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)  # five standard errors
    np.testing.assert_allclose(draws["twice"], 2 * draws["y"])


def test_values_are_set_inside_cond():
    simulator = ModelSimulator(branching, 5.0)
    trace = simulator.trace(random.key(0), {"side": 0, "y": 1.5})
    assert (
        trace["y"]["value"] == 1.5 and trace["y"]["fn"].loc == -5 and trace["twice"]["value"] == 3
    )


def positive_scale(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    bound = numpyro.sample("bound", dist.Uniform(0, scale))
    numpyro.sample("y", dist.Normal(bound, scale), obs=y)


@cache
def positive_simulator():
    return ModelSimulator(positive_scale, DATA)


def test_supports_are_those_at_the_values():
    simulator = positive_simulator()

    @jax.jit
    @jax.vmap
    def upper(scale):
        trace = simulator.trace(random.key(0), {"scale": scale})
        return trace["bound"]["fn"].support.upper_bound

    np.testing.assert_allclose(upper(jnp.arange(1.0, 4)), [1, 2, 3])


def test_substitute_fn_sees_latent_and_observed_sites():
    seen = []

    def substitute_fn(site):
        seen.append(site["name"])
        return 2.0 if site["name"] == "scale" else None

    trace = positive_simulator().trace(random.key(0), substitute_fn=substitute_fn)
    assert seen == ["scale", "bound", "y"]
    assert trace["scale"]["value"] == 2 and not np.allclose(trace["y"]["value"], DATA)


def test_log_density_of_the_trace_is_that_of_numpyro():
    simulator = positive_simulator()
    values = {"scale": jnp.asarray(1.5), "bound": jnp.asarray(0.5)}
    trace = simulator.trace(random.key(0), values | {"y": jnp.asarray(DATA)})
    ours = sum(trace[name]["fn"].log_prob(trace[name]["value"]).sum() for name in simulator.sites)
    expected, _ = numpyro.infer.util.log_density(positive_scale, (DATA,), {}, values)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match=r"\['typo'\].*'scale'"):
        positive_simulator().trace(random.key(0), {"typo": 1.0})


@pytest.mark.parametrize("batch_shape", [1, (3,), (3, 1), np.int64(3)])
def test_batch_shapes(batch_shape):
    draws = positive_simulator().sample(random.key(0), batch_shape)
    shape = batch_shape if isinstance(batch_shape, tuple) else (int(batch_shape),)
    assert draws["scale"].shape == shape and draws["y"].shape == (*shape, 51)


@pytest.mark.parametrize(
    "batch_shape, error", [(0, ValueError), (2.0, TypeError), ((2, -1), ValueError)]
)
def test_bad_batch_shapes(batch_shape, error):
    with pytest.raises(error, match="batch_shape"):
        positive_simulator().sample(random.key(0), batch_shape)


def test_bad_keys():
    with pytest.raises(TypeError, match="rng_key"):
        positive_simulator().sample(0, 3)


def test_one_key_one_batch():
    simulator = positive_simulator()
    first, again, other, raw = (
        simulator.sample(key, 3)["y"]
        for key in (random.key(1), random.key(1), random.key(2), random.PRNGKey(1))
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, raw)
    assert not np.any(first == other)


def test_raw_keys_trace():
    trace = ModelSimulator(autoregression, DATA).trace(random.PRNGKey(1))
    assert trace["y"]["value"].shape == (51,)


def test_a_batch_size_compiles_once():
    simulator = ModelSimulator(positive_scale, DATA)
    simulator.sample(random.key(0), 3)
    size = simulator._simulate_batch._cache_size()
    simulator.sample(random.key(1), 3)
    simulator.sample(random.key(1), (3, 1))
    assert simulator._simulate_batch._cache_size() == size == 1


def test_a_seed_inside_the_model_does_not_repeat_itself():
    simulator = ModelSimulator(handlers.seed(positive_scale, 0), DATA)
    assert len(np.unique(simulator.sample(random.key(0), 10)["scale"])) == 10


def test_models_whose_eager_runs_fail_validation():
    def model(y):
        p = numpyro.sample("p", dist.Normal(0, 1))
        numpyro.sample("y", dist.Bernoulli(probs=jnp.clip(p, -0.5, 1)), obs=y)

    numpyro.enable_validation()
    try:
        draws = ModelSimulator(model, np.array([0, 1, 1])).sample(random.key(0), 100)
    finally:
        numpyro.enable_validation(False)
    assert draws["y"].shape == (100, 3)


def test_simulate_is_traceable():
    simulator = positive_simulator()
    draws = jax.jit(jax.vmap(simulator.simulate))(random.split(random.key(0), 4))
    assert [*simulator.sites] == ["scale", "bound", "y"] and draws["y"].shape == (4, 51)
