# SPDX-License-Identifier: Apache-2.0
"""Recovery, contraction and z-scores."""

import numpy as np

from numpyro_amortized.diagnostics import contraction, recovery


def test_recovery_by_hand():
    truth = {"x": np.array([0.0, 2.0, 4.0])}
    draws = {"x": np.array([[0.0, 2.0], [1.0, 3.0], [3.0, 3.0]])}  # means 1, 2, 3
    result = recovery(truth, draws)["x"]
    assert result.coords["metric"].values.tolist() == ["rmse", "nrmse", "correlation"]
    rmse = np.sqrt(2 / 3)
    np.testing.assert_allclose(result, [rmse, rmse / np.sqrt(8 / 3), 1])
    median = recovery(truth, draws, estimate=lambda x: x.max(1))["x"]
    np.testing.assert_allclose(median.sel(metric="rmse"), np.sqrt((4 + 1 + 1) / 3))


def test_recovery_of_the_exact_posterior(right):
    result = recovery(right.truth, right.draws, dims=right.dims)["mu"]
    # the squared correlation is the explained variance, 10 / 11; standard error .004
    np.testing.assert_allclose(result.sel(metric="correlation"), np.sqrt(10 / 11), atol=0.012)
    np.testing.assert_allclose(result.sel(metric="nrmse"), np.sqrt(1 / 11), atol=0.03)


def test_contraction_by_hand():
    truth = {"x": np.array([0.0, 2.0])}  # variance 2
    draws = {"x": np.array([[0.0, 2.0], [1.0, 2.0]])}  # variances 2 and .5, means 1 and 1.5
    result = contraction(truth, draws)["x"]
    np.testing.assert_allclose(result.sel(metric="contraction"), [0, 0.75])
    np.testing.assert_allclose(result.sel(metric="z_score"), [1 / np.sqrt(2), -0.5 / np.sqrt(0.5)])
    known = contraction(truth, draws, prior_variance={"x": 4.0})["x"]
    np.testing.assert_allclose(known.sel(metric="contraction"), [0.5, 0.875])


def test_contraction_of_the_exact_posterior(right):
    result = contraction(right.truth, right.draws, prior_variance={"mu": 1.0}, dims=right.dims)
    assert result["mu"].dims == ("metric", "dataset")
    # a variance of 1,000 draws has a relative error of .045; the average over data sets of .0014
    shrunk = result["mu"].sel(metric="contraction").mean()
    np.testing.assert_allclose(shrunk, 10 / 11, atol=0.001)
    z_score = result["mu"].sel(metric="z_score")
    assert abs(float(z_score.mean())) < 4 / np.sqrt(1000)
    assert abs(float(z_score.var()) - 1) < 4 * np.sqrt(2 / 1000)


def test_a_latent_that_does_not_vary_has_no_score():
    same = {"x": np.ones(3)}, {"x": np.ones((3, 4))}
    assert recovery(*same)["x"].isnull().values.tolist() == [False, True, True]
    assert contraction(*same)["x"].isnull().all()
