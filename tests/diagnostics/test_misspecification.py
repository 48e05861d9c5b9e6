# SPDX-License-Identifier: Apache-2.0
"""Data unlike all simulations."""

import numpy as np
import pytest
from jax import random
from scipy import stats

from numpyro_amortized.diagnostics import mahalanobis, misspecification, summaries, summary_mmd

RNG = np.random.default_rng(0)
MIX = np.array([[2.0, 0, 0], [1, 0.1, 0], [0, 5, 100]])
REFERENCE = RNG.normal(size=(20_000, 3)) @ MIX


def test_mahalanobis_is_that_of_the_covariance():
    points = RNG.normal(size=(5, 3))
    result = mahalanobis(REFERENCE, points @ MIX)
    # the covariance of 10,000 rows has relative errors of .014
    np.testing.assert_allclose(result["distance"], np.linalg.norm(points, axis=1), rtol=0.05)
    expected = stats.chi2(3).sf(np.sum(points**2, 1))
    np.testing.assert_allclose(result["p_value"], expected, atol=0.03)
    assert result["p_value"].dims == ("dataset",) and result["null"].size == 10_000


def test_mahalanobis_sees_a_change_of_what_never_varied():
    reference = np.column_stack([REFERENCE, REFERENCE[:, 0] * 2, np.ones(len(REFERENCE))])
    assert mahalanobis(reference, reference[:50])["p_value"].min() > 0.001
    changed = reference[:1] + np.eye(5)[4:]
    np.testing.assert_allclose(mahalanobis(reference, changed)["p_value"], 1 / 10_001)


def test_summary_mmd_by_hand():
    """One half of the reference is the points 0 and 2, of scale 1 and median distance 2."""
    result = summary_mmd(random.key(0), [[0.0], [2], [0], [2]], [[5.0]], num_null=3)
    k = {d: np.exp(-(d**2) / 8) for d in (2, 3, 5)}
    np.testing.assert_allclose(
        result["mmd"], np.sqrt((1 + k[2]) / 2 - (k[3] + k[5]) + 1), rtol=1e-5
    )
    # the null is the point 0 or the point 2, both as far from the reference
    np.testing.assert_allclose(result["null"], np.sqrt((1 + k[2]) / 2 - (1 + k[2]) + 1), rtol=1e-5)
    assert float(result["p_value"]) == 0.25


def test_summary_mmd_tells_distributions_apart():
    reference, usual = RNG.normal(size=(600, 2)), RNG.normal(size=(20, 2))
    assert summary_mmd(random.key(0), reference, usual)["p_value"] > 0.01
    np.testing.assert_allclose(summary_mmd(random.key(0), reference, usual + 6)["p_value"], 1 / 501)


@pytest.mark.verify
def test_an_observation_far_outside_is_found(normal_mean):
    """Ten values of scale 1 around a mean that is rarely above 3; then of mean 30."""
    usual = normal_mean.source.sample(random.key(3), 4)["y"]
    conditions = {"y": np.concatenate([usual, [np.linspace(29, 31, 10)]])}
    assert summaries(normal_mean, conditions).shape[0] == 5
    result = misspecification(random.key(0), normal_mean, conditions)
    assert (result["p_value"][:4] > 0.01 / 4).all()  # the level of all four together is 1 %
    np.testing.assert_allclose(result["p_value"][4], 1 / 501)
    alone = misspecification(random.key(0), normal_mean, {"y": conditions["y"][4]})
    np.testing.assert_allclose([alone["p_value"][0], alone["mmd_p_value"]], 1 / 501)


def test_errors():
    with pytest.raises(ValueError, match="Expected summaries of shapes"):
        mahalanobis(REFERENCE, np.zeros((2, 4)))
    with pytest.raises(ValueError, match="reference: expected more than 8 simulations"):
        mahalanobis(REFERENCE[:6], REFERENCE[:2])
    with pytest.raises(ValueError, match="reference: expected at least 20 simulations"):
        summary_mmd(random.key(0), REFERENCE[:10], REFERENCE[:10])
