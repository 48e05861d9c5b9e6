# SPDX-License-Identifier: Apache-2.0
"""Inference from many groups by what was learned from single ones."""

from functools import partial

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.networks import CouplingFlow, DiffusionModel, FlowMatching
from numpyro_amortized.networks.flow_matching import OptimalTransport
from tests.conftest import optimized

SMALL = partial(DiffusionModel, widths=(32, 32))
QUICK = {"epochs": 1, "num_batches": 2, "batch_size": 8, "progress_bar": False}


def one_group(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def other_prior(y):
    scale = numpyro.sample("scale", dist.Gamma(3, 3))
    numpyro.sample("y", dist.Normal(0, scale), obs=y)


def make(model=one_group, network=SMALL):
    return npa.CompositionalApproximator(npa.ModelSimulator(model, 0.0), inference_network=network)


@pytest.fixture(scope="module")
def approximator():
    """Hardly trained."""
    found = make()
    found.fit(random.key(0), **QUICK)
    return found


@pytest.fixture(scope="module")
def trained():
    found = make()
    with optimized():
        found.fit(random.key(0), epochs=15, num_batches=100, progress_bar=False)
    return found


@pytest.mark.verify
def test_normal_posterior(trained):
    num_groups = 20
    y = np.random.default_rng(0).normal(0.5, 1, (3, num_groups)).astype(np.float32)
    draws = trained.compositional_sample(random.key(1), 2000, {"y": y})["mu"]
    mean, sd = y.sum(1) / (num_groups + 1), (num_groups + 1) ** -0.5
    # beside the network's errors, Monte Carlo errors of 0.022 sd and 1.6 %
    assert np.abs(draws.mean(1) - mean).max() / sd < 0.2
    assert np.abs(draws.std(1) / sd - 1).max() < 0.15


@pytest.mark.verify
def test_mini_batches_change_nothing(trained):
    y = np.random.default_rng(0).normal(0.5, 1, 20).astype(np.float32)
    whole = trained.compositional_sample(random.key(1), 2000, {"y": y})["mu"]
    draw = partial(trained.compositional_sample, random.key(1), 2000, {"y": y})
    np.testing.assert_allclose(draw(mini_batch_size=7)["mu"], whole, rtol=1e-3, atol=1e-3)


@pytest.mark.verify
def test_one_group_is_sampled_as_usual(trained):
    y = np.array([0.3, -1.0])
    draws = trained.sample(random.key(0), 4, {"y": y})
    assert trained.log_prob(draws | {"y": y}).shape == (2, 4)


def test_the_prior_is_exact_or_learned(approximator):
    assert "score of the prior: exact" in str(approximator)
    simulator = npa.ModelSimulator(one_group, 0.0)
    adapter = npa.Adapter.for_posterior(simulator, prior_to_normal=False)
    other = npa.CompositionalApproximator(simulator, adapter=adapter)
    assert "score of the prior: learned" in str(other)


@pytest.mark.verify
def test_a_learned_prior_is_sampled_and_saved(tmp_path):
    approximator = make(other_prior, partial(FlowMatching, widths=(8, 8)))
    assert "score of the prior: learned" in str(approximator)
    approximator.fit(random.key(0), **QUICK)
    y = {"y": np.zeros((2, 3))}
    draws = approximator.compositional_sample(random.key(1), 4, y, num_levels=3)["scale"]
    assert draws.shape == (2, 4) and (draws > 0).all()
    approximator.save(tmp_path / "saved")
    loaded = npa.load(tmp_path / "saved", partial(other_prior, 0.0))
    again = loaded.compositional_sample(random.key(1), 4, y, num_levels=3)["scale"]
    np.testing.assert_array_equal(draws, again)


def test_refusals(approximator):
    draw = partial(approximator.compositional_sample, random.key(0), 4)
    with pytest.raises(ValueError, match=r"at least two groups.*use `sample`"):
        draw({"y": np.zeros((3, 1))})
    with pytest.raises(ValueError, match="conditions: expected shapes"):
        draw({"y": np.zeros((3, 4, 2))})
    with pytest.raises(ValueError, match="last_level: expected between"):
        draw({"y": np.zeros((3, 4))}, last_level=2.0)
    with pytest.raises(ValueError, match="num_moves: expected none, or some"):
        draw({"y": np.zeros((3, 4))}, num_moves=-1)
    with pytest.raises(TypeError, match=r"expected DiffusionModel or FlowMatching.*CouplingFlow"):
        make(network=CouplingFlow).fit(random.key(0), **QUICK)
    coupled = partial(FlowMatching, widths=(8,), optimal_transport=OptimalTransport())
    with pytest.raises(ValueError, match="expected the independent coupling"):
        make(network=coupled).fit(random.key(0), **QUICK)
