# SPDX-License-Identifier: Apache-2.0
"""Where a posterior factorizes over groups, and the order of variables and data by groups."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.adapters.factorized import of_other_size
from numpyro_amortized.adapters.hierarchy import Hierarchy, Refusal, find_hierarchy
from numpyro_amortized.adapters.summarized import Structure
from tests import models

Y = np.zeros((6, 4))


def found(model, *args, inferred=None, **kwargs):
    simulator = npa.ModelSimulator(model, *args, **kwargs)
    latents = [s.name for s in simulator.sites.values() if s.role == "latent"]
    draws = simulator.sample(random.key(0), 32)
    return find_hierarchy(simulator, inferred or latents, draws)


def regressions(x, y):
    """Every group has a slope for each of two covariates, which all groups share."""
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    with numpyro.plate("group", y.shape[1]), numpyro.plate("slopes", 2):
        slope = numpyro.sample("slope", dist.Normal(0, scale))
    with numpyro.plate("group", y.shape[1]):
        numpyro.sample("y", dist.Normal((x @ slope).T, 1).to_event(1), obs=y.T)


def panel(x, y, z):
    """Every group has a time series, and three numbers at covariates that all share."""
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    with numpyro.plate("group", len(y)):
        step = numpyro.sample("step", dist.LogNormal(0, scale))
        numpyro.sample("y", dist.GaussianRandomWalk(step, num_steps=y.shape[1]), obs=y)
        numpyro.sample("z", dist.Normal(step[:, None] * x, 1).to_event(1), obs=z)


def random_walk(y):
    """The mean of a group is that of the group before, and more."""
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("group", len(y)):
        step = numpyro.sample("step", dist.Normal(0, tau))
        numpyro.sample("y", dist.Normal(jnp.cumsum(step), 1), obs=y)


def shared_mean(y):
    """Exchangeable, but each observation sees the latents of all groups."""
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(0, tau))
        numpyro.sample("y", dist.Normal(theta - theta.mean(), 1), obs=y)


def unequal(y):
    """A scale of each group that is no argument of the model."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, 1))
        numpyro.sample("y", dist.Normal(theta, jnp.arange(1.0, len(y) + 1)), obs=y)


def crossed(y):
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    rows, columns = numpyro.plate("row", y.shape[0], dim=-2), numpyro.plate("column", y.shape[1])
    with rows:
        a = numpyro.sample("a", dist.Normal(0, tau))
    with columns:
        b = numpyro.sample("b", dist.Normal(0, tau))
    with rows, columns:
        numpyro.sample("y", dist.Normal(a + b, 1), obs=y)


def no_globals(y):
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def test_groups_of_members():
    groups = found(models.group_means, Y)
    assert isinstance(groups, Hierarchy)
    assert groups.plate == "group" and groups.size == 6 and groups.covariates == {}
    assert groups.axes == {"theta": 0, "y": 0}


@pytest.mark.verify
def test_arguments_travel_with_their_group():
    groups = found(models.eight_schools, models.SIGMA, y=models.EFFECTS)
    assert isinstance(groups, Hierarchy)
    np.testing.assert_array_equal(groups.covariates["argument 'sigma'"], models.SIGMA)
    equal = found(models.eight_schools, np.full(8, 10.0), y=models.EFFECTS)
    assert isinstance(equal, Hierarchy) and equal.covariates == {}


def test_few_groups_are_refused_before_anything_is_computed():
    simulator = npa.ModelSimulator(models.eight_schools, models.SIGMA, y=models.EFFECTS)
    refusal = find_hierarchy(simulator, ["mu", "tau", "theta"], {}, few=10)
    assert isinstance(refusal, Refusal) and "few, 10 numbers" in refusal.reason


def test_context_travels_with_its_group():
    groups = found(
        models.schools_of,
        8,
        observed=("y",),
        context=lambda key: {"sigma": random.uniform(key, (8,), minval=5, maxval=20)},
    )
    assert isinstance(groups, Hierarchy)
    assert groups.axes == {"theta": 0, "y": 0, "sigma": 0}


@pytest.mark.verify
def test_plates_without_data_are_features():
    x = np.random.default_rng(0).normal(size=(5, 2))
    groups = found(regressions, x, np.zeros((5, 7)))
    assert isinstance(groups, Hierarchy)
    assert groups.axes == {"slope": 1, "y": 0} and groups.covariates == {}


@pytest.mark.parametrize(
    ("model", "y", "reason"),
    [
        (random_walk, Y[:, 0], "changes the log density"),
        (shared_mean, Y[:, 0], "depend on each other"),
        (unequal, Y[:, 0], "changes the log density"),
        (crossed, Y, r"plates \['column', 'row'\]"),
        (no_globals, Y[:, 0], "no latent is shared"),
    ],
)
def test_refusals_say_why(model, y, reason):
    refusal = found(model, y)
    assert isinstance(refusal, Refusal)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(refusal.reason)


def test_latents_left_out_must_be_those_of_groups():
    refusal = found(models.group_means, Y, inferred=["mu", "theta"])
    assert isinstance(refusal, Refusal) and "['tau'] are not inferred" in refusal.reason
    assert found(models.normal_mean, np.zeros(5)) is None


@pytest.mark.verify
def test_what_groups_have_is_collected_group_by_group():
    arrays = (np.arange(3.0), np.zeros((7, 20)), np.zeros((7, 3)))
    simulator = npa.ModelSimulator(panel, *arrays)
    adapter = npa.Adapter.for_posterior(simulator, hierarchical=True)
    assert adapter.structures == {"group": Structure.GROUPS, "y": Structure.SERIES}
    draws = simulator.sample(random.key(0), 1)
    summarized = adapter.forward(draws)["summary_variables"]
    assert {n: x.shape for n, x in summarized.items()} == {"group": (1, 7, 3), "y": (1, 7, 20, 1)}
    order = np.argsort(draws["y"][0], axis=0)  # of the groups, at every step
    np.testing.assert_array_equal(np.argsort(summarized["y"][0, :, :, 0], axis=0), order)


@pytest.fixture(scope="module")
def adapter():
    """Groups on the last axis: the order of the network is another one than that of the sites."""
    x = np.random.default_rng(0).normal(size=(5, 2))
    simulator = npa.ModelSimulator(regressions, x, np.zeros((5, 7)))
    return simulator, npa.Adapter.for_posterior(simulator, hierarchical=True)


@pytest.mark.verify
def test_variables_are_in_the_order_of_groups(adapter):
    simulator, by_groups = adapter
    draws = simulator.sample(random.key(1), 3)
    inputs = jax.jit(by_groups.forward)(draws)
    slopes = inputs["inference_variables"][:, 1:].reshape(3, 7, 2)
    expected = draws["slope"] / draws["scale"][:, None, None]
    np.testing.assert_allclose(slopes, jnp.moveaxis(expected, 2, 1), rtol=1e-4, atol=1e-4)
    assert inputs["summary_variables"]["group"].shape == (3, 7, 5)
    back = jax.jit(by_groups.inverse)({"inference_variables": inputs["inference_variables"]})
    np.testing.assert_allclose(back["slope"], draws["slope"], rtol=1e-3, atol=1e-4)
    # each slope is scaled by its scale
    flat = jax.jit(by_groups.log_det_jac)(draws) + 14 * jnp.log(draws["scale"])
    np.testing.assert_allclose(flat - flat[0], _log_det_of_scale(draws["scale"]), atol=1e-3)


def _log_det_of_scale(scale):
    """Half-normal to normal quantiles, up to a constant."""
    z = jax.scipy.special.ndtri(2 * jax.scipy.stats.norm.cdf(scale) - 1)
    terms = -(scale**2) / 2 + z**2 / 2
    return terms - terms[0]


@pytest.mark.verify
def test_another_number_of_groups(adapter):
    _, by_groups = adapter
    x = np.random.default_rng(0).normal(size=(5, 2))
    larger = npa.ModelSimulator(regressions, x, np.zeros((5, 12)))
    resized = of_other_size(by_groups, larger, 12)
    draws = larger.sample(random.key(2), 2)
    inputs = resized.forward(draws)
    assert inputs["inference_variables"].shape == (2, 1 + 12 * 2)
    first = {"slope": draws["slope"][..., :7], "scale": draws["scale"], "y": draws["y"][:, :7]}
    fewer = by_groups.forward(first)
    np.testing.assert_allclose(
        fewer["inference_variables"], inputs["inference_variables"][:, :15], rtol=1e-4, atol=1e-4
    )


@pytest.mark.verify
def test_insisting_on_what_is_not_valid_is_refused():
    simulator = npa.ModelSimulator(shared_mean, Y[:, 0])
    with pytest.raises(ValueError, match=r"does not factorize.*depend on each other"):
        npa.Adapter.for_posterior(simulator, hierarchical=True)
    many = npa.ModelSimulator(shared_mean, np.zeros(20))
    flat = npa.Adapter.for_posterior(many, hierarchical=None)
    assert flat.groups is None and "depend on each other" in str(flat)
