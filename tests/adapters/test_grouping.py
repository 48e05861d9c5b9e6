# SPDX-License-Identifier: Apache-2.0
"""Which observed sites are time series and images, and what is summarized together."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.control_flow import scan
from scipy.stats import spearmanr

import numpyro_amortized as npa
from numpyro_amortized.adapters.summarized import Structure
from tests import models
from tests.conftest import others_verified

SET, SERIES, IMAGE, *_ = Structure


def volatility(y):
    """A latent process, and observations at its steps that come from no scan."""
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    h = numpyro.sample("h", dist.GaussianRandomWalk(scale, num_steps=len(y)))
    with numpyro.plate("days", len(y)):
        numpyro.sample("y", dist.Normal(0, jnp.exp(h / 2)), obs=y)


def walk(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    numpyro.sample("y", dist.GaussianRandomWalk(scale, num_steps=len(y)), obs=y)


def two_emissions(y, z):
    rho = numpyro.sample("rho", dist.Uniform(-1, 1))

    def step(before, _):
        state = numpyro.sample("state", dist.Normal(rho * before, 1))
        numpyro.sample("y", dist.Normal(state, 1), obs=None)
        numpyro.sample("z", dist.Normal(state, 1).expand([2]).to_event(1), obs=None)
        return state, None

    scan(step, jnp.zeros(()), None, length=len(y))


def colours(y):
    """No two cells or channels are alike."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    mean = mu * jnp.linspace(0, 1, y.size).reshape(y.shape)
    numpyro.sample("y", dist.Normal(mean, 1).to_event(y.ndim), obs=y)


def field(y):
    """As many latents as cells."""
    mean = numpyro.sample("mean", dist.Normal(0, jnp.linspace(1, 2, y.size).reshape(y.shape)))
    numpyro.sample("y", dist.Normal(mean, 1), obs=y)


def panel(y):
    """Two plates with effects that are inferred: no set, and no neighbours either."""
    with numpyro.plate("visit", y.shape[1], dim=-1):
        effect = numpyro.sample("effect", dist.Normal(0, 1))
    with numpyro.plate("person", y.shape[0], dim=-2):
        own = numpyro.sample("own", dist.Normal(jnp.zeros((y.shape[0], 1)), 1))
        with numpyro.plate("visit", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(effect + own, 1), obs=y)


def trend(t, y):
    """A long vector without structure."""
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(slope * t, 1), obs=y)


def simulator_of(model, *args, observed=None, **options):
    return npa.ModelSimulator(model, *args, observed=observed, **options)


SERIES_OF_20 = np.zeros(20)
CASES = {
    "scan": (models.markov, (SERIES_OF_20,), None, {"y": SERIES}, {"y": (20, 1)}),
    "state space": (models.autoregression, (SERIES_OF_20,), ("rho",), {"y": SERIES}, None),
    "states inferred": (models.autoregression, (SERIES_OF_20,), None, {}, None),
    "short": (models.markov, (np.zeros(16),), None, {}, None),
    "process": (walk, (SERIES_OF_20,), None, {"y": SERIES}, {"y": (20, 1)}),
    "steps of a process": (volatility, (SERIES_OF_20,), ("scale",), {"y": SERIES}, None),
    "image": (models.picture, (np.zeros((8, 8)),), None, {"y": IMAGE}, {"y": (8, 8, 1)}),
    "channels": (colours, (np.zeros((3, 8, 9)),), None, {"y": IMAGE}, {"y": (8, 9, 3)}),
    "volume": (colours, (np.zeros((8, 9, 10)),), None, {"y": IMAGE}, {"y": (8, 9, 10, 1)}),
    "small matrix": (colours, (np.zeros((7, 9)),), None, {}, None),
    "field": (field, (np.zeros((8, 9)),), None, {}, None),
    "panel": (panel, (np.zeros((8, 9)),), None, {}, None),
    "vector": (trend, (np.arange(100.0), np.zeros(100)), None, {}, None),
    "three sites": (
        models.three_sites,
        (np.zeros(5), np.zeros(20), np.zeros((8, 8))),
        None,
        {"survey": SET, "series": SERIES, "image": IMAGE},
        {"survey": (5, 1), "series": (20, 1), "image": (8, 8, 1)},
    ),
}

# those that only `make verify` runs
OTHERS = {
    "short",
    "process",
    "steps of a process",
    "channels",
    "volume",
    "small matrix",
    "field",
    "three sites",
    "panel",
    "state space",
}


@pytest.mark.parametrize("case", others_verified(CASES, CASES.keys() - OTHERS))
def test_structures(case):
    model, args, sites, structures, shapes = CASES[case]
    simulator = npa.ModelSimulator(model, *args)
    pilot = simulator.sample(random.key(0), 50)
    adapter = npa.Adapter.for_posterior(simulator, sites=sites, pilot=pilot)
    assert adapter.structures == structures
    row = jax.eval_shape(adapter.forward, pilot)
    if len(structures) == 1:
        row["summary_variables"] = {next(iter(structures)): row["summary_variables"]}
    found = {n: x.shape[1:] for n, x in row.get("summary_variables", {}).items()}
    assert found.keys() == structures.keys() and found == (shapes or found)
    assert ("inference_conditions" in row) == (not structures)


@pytest.mark.verify
def test_sites_with_the_same_steps_are_one_series():
    simulator = npa.ModelSimulator(two_emissions, SERIES_OF_20, None, observed=("y", "z"))
    draws = simulator.sample(random.key(0), 50)
    adapter = npa.Adapter.for_posterior(simulator, sites=("rho",), pilot=draws)
    assert adapter.structures == {"y": SERIES}
    values = adapter.forward(draws)["summary_variables"]
    assert values.shape == (50, 20, 3)
    # all steps share their moments, so that features keep their order in time
    for feature, raw in enumerate((draws["y"], draws["z"][..., 0], draws["z"][..., 1])):
        assert spearmanr(values[..., feature].ravel(), raw.ravel()).statistic > 1 - 1e-6
    assert "y, z: a time series of 20 steps, summarized: it is drawn in a scan" in str(adapter)


@pytest.mark.verify
def test_covariates_of_every_step_are_features():
    def model(x, y=None):
        rho = numpyro.sample("rho", dist.Uniform(-1, 1))

        def step(before, given):
            return numpyro.sample("y", dist.Normal(rho * before + given, 1)), None

        scan(step, jnp.zeros(()), x)

    context = {"x": (20,), "other": ()}
    simulator = npa.ModelSimulator(
        lambda x, other: model(x),
        observed=("y",),
        context=lambda key: {n: random.normal(key, shape) for n, shape in context.items()},
    )
    draws = simulator.sample(random.key(0), 50)
    adapter = npa.Adapter.for_posterior(simulator, pilot=draws)
    row = adapter.forward(draws)
    assert row["summary_variables"].shape == (50, 20, 2)
    assert row["inference_conditions"].shape == (50, 1)


@pytest.mark.verify
def test_overrides():
    args = (np.arange(100.0), np.zeros(100))
    simulator = npa.ModelSimulator(trend, *args)
    series = npa.Adapter.for_posterior(simulator, series={"y": -1})
    assert series.structures == {"y": SERIES}
    assert "steps, summarized: as you said" in str(series)
    simulator = npa.ModelSimulator(models.picture, np.zeros((8, 8)))
    numbers = npa.Adapter.for_posterior(simulator, images={"y": None})
    assert numbers.structures == {} and "as you said" in str(numbers)
    rows = npa.Adapter.for_posterior(simulator, series={"y": 0})
    assert rows({"y": np.zeros((8, 8))})["summary_variables"].shape == (8, 8)
    simulator = npa.ModelSimulator(panel, np.zeros((4, 5)))
    image = npa.Adapter.for_posterior(simulator, images={"y": (1, 0)})
    assert image({"y": np.zeros((4, 5))})["summary_variables"].shape == (5, 4, 1)


def test_a_set_that_loses_a_site_is_no_set():
    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        with numpyro.plate("n", len(y)):
            x = numpyro.sample("x", dist.Normal(0, 1), obs=x)
            numpyro.sample("y", dist.Normal(slope * x, 1), obs=y)

    simulator = npa.ModelSimulator(model, np.zeros(6), np.zeros(6))
    adapter = npa.Adapter.for_posterior(simulator, sets={"y": None})
    assert adapter({"x": np.zeros(6), "y": np.zeros(6)})["inference_conditions"].shape == (12,)
    assert "its set has 'y', which you changed" in str(adapter)
    joint = npa.Adapter.for_posterior(simulator, sets={"y": 0, "x": 0})
    assert joint({"x": np.zeros(6), "y": np.zeros(6)})["summary_variables"].shape == (6, 2)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"series": {"z": 0}}, "`series`: 'z' is not an observed"),
        ({"series": {"y": 2}}, r"`series`: site 'y' of shape \(8, 8\) has no axis 2"),
        ({"images": {"y": (0, 0)}}, "`images`: site 'y': expected two or three different axes"),
        ({"images": {"y": (0,)}}, "`images`: site 'y': expected two or three different axes"),
        ({"series": {"y": 0}, "images": {"y": (0, 1)}}, "'y' is said to be a time series already"),
    ],
)
def test_wrong_overrides(options, words):
    simulator = npa.ModelSimulator(models.picture, np.zeros((8, 8)))
    with pytest.raises(ValueError, match=words):
        npa.Adapter.for_posterior(simulator, **options)


@pytest.mark.verify
def test_series_of_varying_length_are_masked():
    def model(n, y=None):
        rho = numpyro.sample("rho", dist.Uniform(-1, 1))

        def step(before, _):
            return numpyro.sample("y", dist.Normal(rho * before, 1)), None

        scan(step, jnp.zeros(()), None, length=n)

    simulator = npa.ModelSimulator(model, observed=("y",), sizes={"n": (5, 30)})
    adapter = npa.Adapter.for_posterior(simulator)
    assert adapter.structures == {"y": SERIES}
    inputs = adapter({"y": np.arange(30.0), "n": 7})
    np.testing.assert_array_equal(inputs["summary_mask"], np.arange(30) < 7)
    assert "inference_conditions" not in inputs
    other = adapter({"y": np.where(np.arange(30) < 7, np.arange(30.0), 9), "n": 7})
    np.testing.assert_array_equal(inputs["summary_variables"], other["summary_variables"])


@pytest.mark.verify
def test_masks_of_one_site_among_several():
    def model(n, y=None, image=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("N", n):
            numpyro.sample("y", dist.Normal(mu, 2), obs=y)
        mean = mu * jnp.arange(72.0).reshape(8, 9) / 72
        numpyro.sample("image", dist.Normal(mean, 1), obs=image)

    simulator = npa.ModelSimulator(model, observed=("y", "image"), sizes={"n": (2, 6)})
    adapter = npa.Adapter.for_posterior(simulator)
    assert adapter.structures == {"y": SET, "image": IMAGE}
    inputs = adapter.forward(simulator.sample(random.key(0), 3))
    assert {n: x.shape for n, x in inputs["summary_mask"].items()} == {"y": (3, 6)}
    assert inputs["summary_variables"]["image"].shape == (3, 8, 9, 1)


@pytest.mark.parametrize(
    "chain, structures",
    [
        (npa.Adapter().as_set("y"), {"summary_variables": SET}),
        (npa.Adapter().as_time_series("y"), {"summary_variables": SERIES}),
        (npa.Adapter().expand_dims("y", axis=(-2, -1)), {"summary_variables": IMAGE}),
    ],
)
def test_structures_of_chains(chain, structures):
    adapter = chain.rename("y", "summary_variables")
    assert adapter.structures == {}
    assert adapter.bind({"y": np.zeros((3, 10))}).structures == structures


def test_structures_of_chains_with_several_arrays():
    adapter = (
        npa.Adapter().as_set("x").as_time_series("y").group(["x", "y"], into="summary_variables")
    )
    bound = adapter.bind({"x": np.zeros((3, 10)), "y": np.zeros((3, 10))})
    assert bound.structures == {"x": SET, "y": SERIES}
