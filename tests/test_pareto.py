# SPDX-License-Identifier: Apache-2.0
"""Pareto smoothing is that of ArviZ."""

import jax
import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy.special import logsumexp

from numpyro_amortized.pareto import are_even, largest_k, smooth_weights

smooth = jax.jit(smooth_weights)
RNG = np.random.default_rng(0)
WEIGHTS = {
    "bounded": lambda n: np.log(RNG.uniform(0.5, 1, n)),
    "log-normal": lambda n: RNG.normal(size=n),
    "Pareto 0.4": lambda n: -0.4 * np.log(RNG.uniform(size=n)),
    "Pareto 1.2": lambda n: -1.2 * np.log(RNG.uniform(size=n)) - 300,
    "half of no weight": lambda n: np.where(RNG.uniform(size=n) < 0.5, -np.inf, RNG.normal(size=n)),
}


@pytest.mark.parametrize("n", [50, 2000])
@pytest.mark.parametrize("name", WEIGHTS)
def test_as_arviz(name, n):
    log_weights = WEIGHTS[name](n)
    smoothed, k = smooth(log_weights.astype(np.float32))
    expected, expected_k = array_stats.psislw(-log_weights)  # wants minus log weights
    expected -= logsumexp(expected)
    # float32 against float64
    np.testing.assert_allclose(k, expected_k, atol=5e-3)
    np.testing.assert_allclose(smoothed, expected, rtol=1e-3, atol=5e-3)


def test_equal_weights_have_no_tail():
    smoothed, k = smooth(np.full(400, -7.0, np.float32))
    assert k == -np.inf
    np.testing.assert_allclose(smoothed, -np.log(400), rtol=1e-6)


@pytest.mark.parametrize("log_weights", [np.zeros(20), np.full(400, -np.inf)])
def test_nothing_can_be_said(log_weights):
    assert smooth(log_weights.astype(np.float32)).pareto_k == np.inf


def test_one_draw_has_all_the_weight():
    log_weights = np.full(400, -np.inf, np.float32)
    log_weights[7] = 3
    smoothed, k = smooth(log_weights)
    assert k == np.inf and smoothed[7] == 0


def test_even_weights():
    """Even as a whole: not where a twentieth have no weight, nor where one has thirty times its."""
    log_weights = np.stack([RNG.normal(0, 0.02, 4000)] * 3)
    log_weights[1, :200] = -np.inf
    log_weights[2, 0] = np.log(30)
    weights = jax.nn.softmax(log_weights)
    assert are_even(weights).tolist() == [True, False, False]
    assert [bool(are_even(np.asarray(each))) for each in weights] == [True, False, False]


def test_largest_k():
    found = [largest_k(100), largest_k(1000), largest_k(10**6)]
    np.testing.assert_allclose(found, [0.5, 2 / 3, 0.7])
