# SPDX-License-Identifier: Apache-2.0
"""Expected coverage of intervals and regions."""

import numpy as np
import pytest
from jax import random
from scipy import stats

from numpyro_amortized.diagnostics import (
    central_interval,
    coverage,
    highest_density_interval,
    tarp,
    uniformity_test,
)

LEVELS = [0.5, 0.9]


def test_coverage_by_hand():
    draws = {"x": np.tile(np.arange(1.0, 10), (4, 1))}  # deciles of the order statistics
    truth = {"x": np.array([5.0, 2.4, 8.1, 8.0])}
    shares = coverage(truth, draws, levels=[0.2, 0.6])["x"]
    # the intervals are [4, 6] and [2, 8]
    assert shares.dims == ("level",) and shares.values.tolist() == [0.25, 0.75]


def test_levels_are_those_of_a_plot_by_default(right):
    shares = coverage(right.truth, right.draws, dims=right.dims)
    np.testing.assert_allclose(shares["level"], np.arange(1, 20) / 20)
    assert shares["mu"].dims == ("level",)


def test_central_interval_contains_a_further_draw_with_its_probability():
    x = np.random.default_rng(0).exponential(size=(20_000, 20))
    lower, upper = central_interval(x[:, :19], 0.8)
    share = np.mean((lower <= x[:, 19]) & (x[:, 19] <= upper))
    assert abs(share - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 20_000)


def test_highest_density_interval_is_the_shortest():
    draws = np.array([[0.0, 10, 11, 12, 30]])
    assert highest_density_interval(draws, 0.3) == (10, 12)
    # of an exponential distribution: from zero to a quantile
    q = stats.expon.ppf((np.arange(2000) + 0.5) / 2000)[None]
    lower, upper = highest_density_interval(q, 0.9)
    np.testing.assert_allclose([lower[0], upper[0]], [0, stats.expon.ppf(0.9)], atol=0.01)


@pytest.mark.parametrize("interval", [central_interval, highest_density_interval])
def test_coverage_is_right_for_the_right_posterior_alone(interval, right, narrow):
    shares = coverage(right.truth, right.draws, levels=LEVELS, interval=interval, dims=right.dims)
    error = np.sqrt(np.multiply(LEVELS, np.subtract(1, LEVELS)) / shares.attrs["num_datasets"])
    # four standard errors, and what choosing the shortest interval costs
    np.testing.assert_array_less(np.abs(shares["mu"] - LEVELS), 4 * error + 0.01)
    wrong = coverage(narrow.truth, narrow.draws, levels=LEVELS, interval=interval)["mu"]
    expected = 1 - 2 * stats.norm.sf(0.7 * stats.norm.isf(np.subtract(1, LEVELS) / 2))
    np.testing.assert_array_less(np.abs(wrong - expected), 4 * error + 0.01)
    assert (wrong < np.array(LEVELS) - 5 * error).all()


def test_tarp_accepts_the_right_posterior_alone(right, narrow):
    for draws, passes in [(right, True), (narrow, False)]:
        pit = tarp(random.key(1), draws.truth, draws.draws)
        assert pit["tarp"].shape == (1, 1000)
        p_value = float(uniformity_test(pit)["tarp"].sel(p_value="corrected"))
        assert (p_value > 0.01) == passes, p_value


def test_tarp_by_hand():
    truth = {"x": np.array([1.0, -1.0])}  # mean 0, standard deviation 1
    draws = {"x": np.array([[0.0, 0.5, -9.0], [-1.5, 3.0, 4.0]])}
    pit = tarp(random.key(0), truth, draws, references=np.array([[0.0], [-2.0]]))["tarp"].values
    # two of three draws are closer than 1 to 0; one is closer than 1 to -2
    assert 2 / 4 <= pit[0, 0] <= 3 / 4 and 1 / 4 <= pit[0, 1] <= 2 / 4


def correlated(num_datasets, correlation, rng):
    chol = np.linalg.cholesky([[1, correlation], [correlation, 1]])
    return rng.normal(size=(num_datasets, 200, 2)) @ chol.T


def test_tarp_sees_wrong_dependence_that_marginals_hide():
    """References to one side, along the direction in which the draws are too narrow."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(500, 2))
    truth = {"x": centre + correlated(500, 0.9, rng)[:, 0]}
    references = centre + 10
    for correlation, passes in [(0.9, True), (0.0, False)]:
        draws = {"x": centre[:, None] + correlated(500, correlation, rng)}
        pit = tarp(random.key(0), truth, draws, references=references)
        p_value = float(uniformity_test(pit)["tarp"].sel(p_value="corrected"))
        assert (p_value > 0.01) == passes, (correlation, p_value)


def test_tarp_does_not_depend_on_units(right):
    scaled = [{"mu": 1000 * x["mu"] + 5.0} for x in (right.truth, right.draws)]
    first = tarp(random.key(0), right.truth, right.draws)["tarp"]
    second = tarp(random.key(0), *scaled)["tarp"]
    # float32: a few draws change places with the truth
    assert float(np.abs(first - second).max()) < 0.01


def test_errors_name_the_site(right):
    with pytest.raises(ValueError, match="Site 'x': expected draws of shape"):
        coverage({"x": np.zeros(3)}, {"x": np.zeros((2, 5))})
    with pytest.raises(ValueError, match="Site 'x': 1 of 6 draws are NaN"):
        coverage({"x": np.zeros(2)}, {"x": np.array([[0, 1, np.nan], [1, 2, 3]])})
    with pytest.raises(ValueError, match=r"missing: \['x'\]"):
        coverage({"x": np.zeros(2)}, {"y": np.zeros((2, 3))})
    with pytest.raises(ValueError, match=r"references: expected shape \(1000, 1\)"):
        tarp(random.key(0), right.truth, right.draws, references=np.zeros((1000, 2)))
