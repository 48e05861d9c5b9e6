# SPDX-License-Identifier: Apache-2.0
"""Which observed sites are sets, given the latents that are inferred."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.adapters.exchangeability import find_sets
from tests import models

EQUAL = np.full(8, 10.0)


def iid_expanded(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1).expand([len(y)]), obs=y)


def iid_renamed(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("somebody", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def iid_event(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1).expand([len(y)]).to_event(1), obs=y)


def schools_expanded(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([len(sigma)]))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools_renamed(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("inner", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("outer", len(sigma)):
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def regression_expanded(x, y):
    slope = numpyro.sample("slope", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ slope, 1), obs=y)


def two_responses(x, y):
    """``y`` depends on the observed ``x`` of its own member."""
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", dist.Normal(0, 1), obs=x)
        numpyro.sample("y", dist.Normal(slope * x, 1), obs=y)


def vectors(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(mu, np.diag([1.0, 2.0, 3.0])), obs=y)


def keyed(*cases):
    """Of model, arguments, inferred sites (``None`` for all latents) and the axes of the set."""
    return [pytest.param(*c, id=f"{c[0].__name__}-{i}") for i, c in enumerate(cases)]


ZEROS = np.zeros(6)
SCHOOLS = (models.eight_schools, schools_expanded, schools_renamed)
CASES = keyed(
    *(
        (model, (ZEROS,), None, {"y": 0})
        for model in (models.normal_mean, iid_expanded, iid_renamed, iid_event)
    ),
    *((model, (EQUAL, models.EFFECTS), None, {}) for model in SCHOOLS),
    *((model, (EQUAL, models.EFFECTS), ("mu", "tau"), {"y": 0}) for model in SCHOOLS),
    *((model, (models.SIGMA, models.EFFECTS), ("mu", "tau"), {}) for model in SCHOOLS),
    (models.regression, (models.DESIGN, ZEROS), None, {}),
    (regression_expanded, (models.DESIGN, ZEROS), None, {}),
    (two_responses, (ZEROS, ZEROS), None, {"x": 0, "y": 0}),
    (vectors, (np.zeros((5, 3)),), None, {"y": 0}),
    (models.autoregression, (np.zeros(5),), None, {}),
)


@pytest.mark.parametrize("model, args, sites, expected", CASES)
def test_sets(model, args, sites, expected):
    simulator = npa.ModelSimulator(model, *args)
    latents = [name for name, site in simulator.sites.items() if site.role == "latent"]
    pilot = simulator.sample(random.key(0), 16)
    found, reasons = find_sets(simulator, sites or latents, pilot)
    assert [group.axes for group in found] == ([expected] if expected else [])
    explained = [group.reason for group in found] or [*reasons.values()]
    words = "leaves the log density unchanged" if expected else "changes the log density"
    assert all(words in reason for reason in explained)


@pytest.mark.parametrize(
    "sites, is_set", [pytest.param(None, False, marks=pytest.mark.verify), (("mu", "tau"), True)]
)
def test_the_adapter_follows_and_says_why(sites, is_set):
    simulator = npa.ModelSimulator(models.eight_schools, EQUAL, models.EFFECTS)
    adapter = npa.Adapter.for_posterior(simulator, sites=sites)
    row = adapter(simulator.sample(random.key(0), 2))
    assert ("summary_variables" in row) == is_set
    assert ("inference_conditions" in row) != is_set
    words = ("leaves the log density unchanged", "changes the log density")
    assert (words[0] in str(adapter), words[1] in str(adapter)) == (is_set, not is_set)


@pytest.mark.verify
def test_pairs_are_joint_members():
    simulator = npa.ModelSimulator(two_responses, np.zeros(6), np.zeros(6))
    row = npa.Adapter.for_posterior(simulator)(simulator.sample(random.key(0), 2))
    assert row["summary_variables"].shape == (2, 6, 2)


def test_override():
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(6))
    numbers = npa.Adapter.for_posterior(simulator, sets={"y": None})
    assert "as you said" in str(numbers)
    assert numbers({"y": np.zeros(6)})["inference_conditions"].shape == (6,)
    simulator = npa.ModelSimulator(models.eight_schools, models.SIGMA, models.EFFECTS)
    as_set = npa.Adapter.for_posterior(simulator, sets={"y": -1})
    assert as_set({"y": models.EFFECTS})["summary_variables"].shape == (8, 1)


@pytest.mark.parametrize(
    "sets, words",
    [
        ({"z": 0}, "'z' is not an observed"),
        ({"mu": 0}, "'mu'"),
        ({"y": 1}, r"shape \(6,\) has no axis 1"),
    ],
)
def test_wrong_override(sets, words):
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(6))
    with pytest.raises(ValueError, match=f"`sets`: .*{words}"):
        npa.Adapter.for_posterior(simulator, sets=sets)
