# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration."""

import time

import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from jax import random
from scipy import stats

import numpyro_amortized as npa
from numpyro_amortized.diagnostics import (
    holm,
    pit_values,
    simulation_based_calibration,
    uniformity_test,
)
from tests.diagnostics.exact import NormalMean


def corrected(tree):
    p_values = tree["uniformity"].dataset.sel(p_value="corrected")
    return {name: float(p_values[name].min()) for name in p_values}


def test_pit_values_by_hand():
    truth = {"x": np.array([0.5, 2.0, 0.5])}
    draws = {"x": np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 1.5], [0.5, 0.5, 1.0]])}
    pit = np.asarray(pit_values(random.key(0), truth, draws)["x"])
    # one of three is below; all are below; none is below and two are equal
    assert 1 / 4 <= pit[0] <= 2 / 4 and 3 / 4 <= pit[1] <= 1 and 0 <= pit[2] <= 3 / 4


def test_pit_values_of_discrete_draws_are_uniform():
    num_samples = 7
    values = random.poisson(random.key(1), 2.0, (5000, num_samples + 1))
    pit = pit_values(random.key(0), {"k": values[:, 0]}, {"k": values[:, 1:]})["k"]
    assert stats.kstest(np.asarray(pit), "uniform").pvalue > 0.01


def test_a_right_posterior_passes():
    tree = simulation_based_calibration(random.key(0), NormalMean())
    pit = tree["prior_sbc"]
    assert dict(pit.sizes) == {"chain": 1, "draw": 500}
    assert set(pit.data_vars) == {"mu", "log_likelihood"}
    assert 0 <= pit["mu"].min() and pit["mu"].max() <= 1
    assert min(corrected(tree).values()) > 0.01, corrected(tree)


def test_a_narrow_posterior_fails_by_its_spread():
    tree = simulation_based_calibration(random.key(0), NormalMean(scale=0.7))
    assert corrected(tree)["mu"] < 1e-6
    assert tree["uniformity"]["mu"].sel(p_value="spread") < 1e-6


def test_a_shifted_posterior_fails_by_its_location():
    tree = simulation_based_calibration(random.key(0), NormalMean(shift=0.4))
    assert corrected(tree)["mu"] < 1e-6
    assert tree["uniformity"]["mu"].sel(p_value="location") < 1e-6


def test_data_dependent_quantities_see_a_posterior_that_ignores_the_data():
    quantities = {"residual": lambda latents, observed: observed["y"].mean() - latents["mu"]}
    blind = simulation_based_calibration(
        random.key(0), NormalMean(ignores_data=True), quantities=quantities
    )
    p_values = corrected(blind)
    assert p_values["mu"] > 0.01 and p_values["log_likelihood"] < 1e-6
    right = simulation_based_calibration(random.key(0), NormalMean(), quantities=quantities)
    assert corrected(right)["residual"] > 0.01


@pytest.mark.verify
def test_chunks_cover_every_data_set():
    """An odd number of data sets, in chunks, of a quantity with a shape of its own."""
    tree = simulation_based_calibration(
        random.key(0),
        NormalMean(),
        num_datasets=203,
        num_samples=19,
        batch_size=50,
        quantities={"pair": lambda latents, observed: jnp.stack([latents["mu"], -latents["mu"]])},
    )
    pit = tree["prior_sbc"]["pair"]
    assert pit.shape == (1, 203, 2)
    np.testing.assert_allclose(pit[..., 0] + pit[..., 1], 1, atol=1.01 / 20)
    assert len(np.unique(pit[..., 0])) == 203


@pytest.fixture(scope="module")
def held_out(normal_mean):
    return normal_mean.source.sample(random.key(9), 500)


@pytest.mark.verify
def test_a_trained_approximator_passes_within_seconds(normal_mean, held_out):
    start = time.perf_counter()
    tree = simulation_based_calibration(random.key(2), normal_mean)
    assert time.perf_counter() - start < 10
    assert min(corrected(tree).values()) > 0.01, corrected(tree)
    given = simulation_based_calibration(random.key(2), normal_mean, simulations=held_out)
    assert given["prior_sbc"].sizes["draw"] == 500 and corrected(given)["mu"] > 0.01


def test_simulations_that_are_not_finite_are_left_out_and_counted(normal_mean, held_out):
    y = np.array(held_out["y"])
    y[:3, 0] = np.nan
    given = {"mu": held_out["mu"], "y": y}
    tree = simulation_based_calibration(random.key(2), NormalMean(), simulations=given)
    assert tree["prior_sbc"].sizes["draw"] == 497
    assert tree["prior_sbc"].attrs["skipped_simulations"] == 3


@pytest.mark.verify
def test_plates_are_dimensions(regression):
    tree = simulation_based_calibration(random.key(0), regression, num_datasets=10, num_samples=9)
    pit = tree["prior_sbc"]
    assert pit["slope"].dims == ("chain", "draw", "feature")
    assert set(pit.data_vars) == {"intercept", "slope", "log_likelihood"}


def test_holm_by_hand():
    # sorted: .01 * 4, .02 * 3, .03 * 2, .5: and never less than the one before
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1, 1]


def test_uniformity_test_is_that_of_scipy_and_keeps_its_level():
    u = np.random.default_rng(0).random((400, 1, 200))
    result = uniformity_test(xarray.Dataset({"u": (("case", "chain", "draw"), u)}))["u"]
    expected = stats.kstest(u[3, 0], "uniform").pvalue
    np.testing.assert_allclose(result.sel(p_value="location")[3], expected)
    folded = stats.kstest(np.abs(2 * u[3, 0] - 1), "uniform").pvalue
    np.testing.assert_allclose(result.sel(p_value="spread")[3], folded)
    both = 2 * result.sel(p_value=["location", "spread"]).min("p_value")
    # 400 tests at the level of 10 %: three standard errors of .015
    assert float((both < 0.1).mean()) < 0.1 + 0.045
    assert float(result.sel(p_value="corrected").min()) > 0.01


def test_errors_name_what_is_wrong(normal_mean):
    with pytest.raises(ValueError, match=r"quantities: \['mu'\] are names of sites"):
        simulation_based_calibration(
            random.key(0), NormalMean(), quantities={"mu": lambda latents, observed: 0.0}
        )
    with pytest.raises(ValueError, match=r"simulations: .* missing: \['y'\]"):
        simulation_based_calibration(random.key(0), NormalMean(), simulations={"mu": np.zeros(3)})
    bank = npa.OfflineDataset(normal_mean.source.sample(random.key(0), 50))
    learned = npa.ContinuousApproximator(bank, adapter=normal_mean.adapter)
    with pytest.raises(ValueError, match="learned from a OfflineDataset"):
        simulation_based_calibration(random.key(0), learned)
    with pytest.raises(ValueError, match="Draws are NaN"):
        simulation_based_calibration(random.key(0), NormalMean(scale=np.nan), num_datasets=5)
