# SPDX-License-Identifier: Apache-2.0
"""Training together beside training alone."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.networks import DiffusionModel, FlowMatching
from tests import models
from tests.approximators.test_ensemble import CONDITIONS, RULES
from tests.conftest import FLOW, SETS

pytestmark = pytest.mark.verify


def test_members_learn_as_they_would_alone(unoptimized):
    """From the same initial parameters and without noise in the losses, the same steps."""
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(4))
    bank = simulator.sample(random.key(5), 64)
    options = {"epochs": 2, "batch_size": 64, "dataset": bank, "validation": 0, "rejuvenation": 0}

    def flows():
        return {
            n: npa.ContinuousApproximator(simulator, inference_network=FLOW, summary_network=SETS)
            for n in ("a", "b")
        }

    start = npa.EnsembleApproximator(flows())
    start.fit(random.key(0), **options, progress_bar=False)
    alone = flows()["a"]
    alone.restore(lambda _: nnx.clone(start.members["a"].modules))
    start.fit(random.key(2), **options, progress_bar=False)
    alone.fit(random.key(2), **options, progress_bar=False)
    data = {"mu": jnp.array([0.1, -0.3]), **CONDITIONS}
    together, by_itself = start.members["a"].log_prob(data), alone.log_prob(data)
    np.testing.assert_allclose(together, by_itself, rtol=1e-3, atol=1e-3)
    assert np.abs(together - start.members["b"].log_prob(data)).max() > 1e-2


def test_members_of_all_kinds(unoptimized):
    simulator = npa.ModelSimulator(models.normal_mean, np.zeros(4))
    options = {"adapter": npa.Adapter.for_posterior(simulator), "summary_network": SETS}
    members = {
        "flow": npa.ContinuousApproximator(simulator, inference_network=FLOW, **options),
        "diffusion": npa.ContinuousApproximator(
            simulator, inference_network=partial(DiffusionModel, widths=(16, 16)), **options
        ),
        "composed": npa.CompositionalApproximator(
            simulator, inference_network=partial(FlowMatching, widths=(16, 16)), **options
        ),
        "rules": npa.ScoringRuleApproximator(simulator, scoring_rules=RULES, **options),
    }
    with_ratio = {**members, "ratio": npa.RatioApproximator(simulator, **options)}
    npa.EnsembleApproximator(with_ratio).fit(random.key(0), epochs=2, progress_bar=False)
    ensemble = npa.EnsembleApproximator(members)
    mu = np.linspace(-6, 6, 1001, dtype=np.float32)
    data = {"mu": np.tile(mu, (2, 1)), **CONDITIONS}
    density = np.exp(np.asarray(ensemble.log_prob(data), float))
    np.testing.assert_allclose(density.sum(1) * (mu[1] - mu[0]), 1, atol=2e-3)
    draws = ensemble.sample(random.key(1), 4000, CONDITIONS)["mu"]
    exact = np.cumsum(density, axis=1) * (mu[1] - mu[0])
    found = [np.searchsorted(np.sort(row), mu) / 4000 for row in np.asarray(draws)]
    assert np.abs(found - exact).max() < 2 / 4000**0.5
    data = {"mu": np.array([0.1, -0.3]), **CONDITIONS}
    assert with_ratio["ratio"].log_ratio(data).shape == (2,)
