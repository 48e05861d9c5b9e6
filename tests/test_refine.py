# SPDX-License-Identifier: Apache-2.0
"""From amortized posteriors to exact ones."""

from functools import partial

import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized.refinement.chains import some_rows
from numpyro_amortized.refinement.convergence import nested_rhat
from tests import models
from tests.bimodal import TwoNormals, squared, squared_posterior

NUM_DATASETS, NUM_SAMPLES = 20, 1000
# of as many draws as effective ones, the standard error of a mean is 0.032 sd, that of a standard
# deviation 0.022
MEAN_ERROR, SD_ERROR = 5 * 0.032, 5 * 0.022


def draws_of(tree, name):
    """Values ``(num_samples, ...)``."""
    values = tree["posterior"][name].values
    return values.reshape(-1, *values.shape[2:])


def check_normal_mean(tree, y):
    draws = draws_of(tree, "mu")
    mean, sd = models.normal_mean_posterior(y)
    assert np.abs((draws.mean(0) - mean) / sd).max() < MEAN_ERROR
    assert np.abs(draws.std(0) / sd - 1).max() < SD_ERROR


@pytest.mark.verify
def test_a_conjugate_model_needs_no_chains(normal_mean):
    y = np.asarray(normal_mean.source.sample(random.key(5), NUM_DATASETS)["y"])
    tree = npa.refine(random.key(0), normal_mean, {"y": y}, num_samples=NUM_SAMPLES)
    stats = tree["sample_stats"]
    assert (stats["step"] == "resampled").mean() >= 0.95
    assert (stats["ess"] >= NUM_SAMPLES).all()
    assert np.isnan(stats["nested_rhat"][stats["step"] == "resampled"]).all()
    check_normal_mean(tree, y)


@pytest.fixture(scope="module")
def bad(approximate):
    """Ten training steps."""
    approximator = approximate(models.normal_mean, np.zeros(10))
    approximator.fit(random.key(0), epochs=1, num_batches=10, progress_bar=False)
    return approximator


@pytest.fixture(scope="module")
def data(bad):
    """The last data set is far outside of the prior predictive."""
    y = np.array(bad.source.sample(random.key(6), NUM_DATASETS)["y"])
    y[-1] += 20
    return y


@pytest.fixture(scope="module")
def batch(bad, data):
    return npa.refine(random.key(1), bad, {"y": data}, num_samples=NUM_SAMPLES)


def test_each_data_set_takes_the_step_that_it_needs(batch):
    stats = batch["sample_stats"].dataset
    assert stats["step"].dims == ("dataset",)
    assert set(stats["step"].values) == {"resampled", "mcmc"}
    first, last = stats.isel(dataset=0), stats.isel(dataset=-1)
    assert (first["step"], last["step"]) == ("resampled", "mcmc")
    # both the weights and the summaries tell
    assert last["pareto_k"] > 0.7 or last["importance_ess"] < NUM_SAMPLES
    assert last["ood_p_value"] < 0.01 < first["ood_p_value"]
    assert last["ood_distance"] > 10 * first["ood_distance"]
    assert last["nested_rhat"] <= 1.01
    assert (stats["ess"] >= NUM_SAMPLES).all()
    assert last["num_log_densities"] > first["num_log_densities"] >= NUM_SAMPLES


def test_all_of_them_end_at_the_exact_posterior(batch, data):
    check_normal_mean(batch, data)


def test_the_tree_is_that_of_to_inference_data(batch, bad, data):
    plain = bad.to_inference_data(random.key(0), {"y": data}, num_samples=NUM_SAMPLES)
    assert set(batch.children) == set(plain.children)
    for group in set(plain.children) - {"sample_stats"}:
        assert batch[group].sizes == plain[group].sizes
        assert set(batch[group].data_vars) == set(plain[group].data_vars)
    # the density of each draw, in the network's space, where mu is standard normal already
    log_joint = batch["log_likelihood"]["y"].sum("n") + batch["log_prior"]["mu"]
    np.testing.assert_allclose(batch["sample_stats"]["lp"], log_joint, rtol=1e-3, atol=1e-2)


def test_a_second_call_compiles_nothing(batch, bad, data, compilations):
    before = len(compilations)
    other = npa.refine(random.key(2), bad, {"y": data[::-1] + 0.5}, num_samples=NUM_SAMPLES)
    assert len(compilations) == before
    assert other["sample_stats"]["step"][0] == "mcmc"


def bimodal(**options):
    simulator = npa.ModelSimulator(squared, x=np.zeros(()))
    network = partial(TwoNormals, **options)
    approximator = npa.ContinuousApproximator(simulator, inference_network=network)
    approximator.fit(random.key(0), epochs=1, num_batches=2, progress_bar=False)
    return approximator


@pytest.mark.verify
def test_chains_give_modes_their_weights():
    """Modes of the network that are too narrow for importance weights, and of wrong weights."""
    approximator = bimodal(scale=0.03)
    tree, again = (
        npa.refine(random.key(0), approximator, {"x": 1.0}, num_samples=4 * NUM_SAMPLES)
        for _ in range(2)
    )
    assert tree["sample_stats"]["step"].shape == () and tree["sample_stats"]["step"] == "mcmc"
    theta = draws_of(tree, "theta")
    np.testing.assert_array_equal(theta, draws_of(again, "theta"))
    assert abs((theta > 0).mean() - 0.5) < 0.05
    mean, sd = squared_posterior(1.0)
    assert abs(np.abs(theta).mean() - mean) < MEAN_ERROR * sd
    assert abs(np.abs(theta).std() / sd - 1) < SD_ERROR


@pytest.mark.verify
def test_it_says_what_it_could_not_do():
    """The network knows one of two modes, so perfect weights are those of half the posterior."""
    approximator = bimodal(scale=0.12, weights=(1.0, 0.0))
    with pytest.warns(UserWarning, match=r"data sets \[0\] did not agree .*`max_rounds`"):
        tree = npa.refine(
            random.key(0), approximator, {"x": [1.0]}, num_samples=4 * NUM_SAMPLES, max_rounds=2
        )
    stats = tree["sample_stats"].dataset.isel(dataset=0)
    assert stats["step"] == "unresolved" and stats["nested_rhat"] > 1.01
    assert stats["importance_ess"] >= 4 * NUM_SAMPLES
    # the share of evidence that some 50 of 1,000 draws of the prior find
    assert abs(stats["missed_mass"] - 0.5) < 5 * 0.25 * 50**-0.5


def test_nested_rhat():
    """Chains that stay near their starts are seen, those that forgot them are not."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(200, 32, 3))
    assert nested_rhat(draws, 8) < 1.01
    draws[..., 1] += np.repeat(rng.normal(size=8), 4)
    starts, within = np.var(draws[..., 1].mean(0).reshape(8, 4).mean(1), ddof=1), 1.0
    assert nested_rhat(draws, 8) == pytest.approx(np.sqrt(1 + starts / within), rel=0.02)


@pytest.mark.parametrize("num_samples", [1000, 2000, 10_000])
def test_draws_come_from_all_chains(num_samples):
    """Of 1,000 steps of 128 chains: each chain gives 8 or more draws on average."""
    rows = some_rows(random.key(0), 128_000, num_samples)
    assert len(np.unique(rows)) == num_samples
    counts = np.bincount(rows % 128, minlength=128)
    mean = num_samples / 128
    assert np.abs(counts - mean).max() < 6 * np.sqrt(mean)
    assert len(np.unique(some_rows(random.key(0), 100, num_samples))) == 100


def test_refusals(approximate, bad, data):
    simulator = npa.ModelSimulator(models.regression, models.DESIGN, np.zeros(len(models.DESIGN)))
    adapter = npa.Adapter.for_posterior(simulator, sites=("intercept",))
    network = partial(TwoNormals, scale=1.0)
    one = npa.ContinuousApproximator(simulator, adapter=adapter, inference_network=network)
    one.fit(random.key(0), epochs=1, num_batches=2, progress_bar=False)
    with pytest.raises(ValueError, match=r"\['slope'\] are latent, but not inferred"):
        npa.refine(random.key(0), one, {"y": np.zeros(len(models.DESIGN))})
    with pytest.raises(ValueError, match="num_samples: expected a multiple of 4"):
        npa.refine(random.key(0), bad, {"y": data}, num_samples=10)
    with pytest.raises(ValueError, match="max_rounds: expected a positive integer, got 0"):
        npa.refine(random.key(0), bad, {"y": data}, max_rounds=0)
    untrained = approximate(models.normal_mean, np.zeros(10))
    with pytest.raises(RuntimeError, match="not trained"):
        npa.refine(random.key(0), untrained, {"y": data})
