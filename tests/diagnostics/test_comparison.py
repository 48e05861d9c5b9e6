# SPDX-License-Identifier: Apache-2.0
"""Calibration of model probabilities, and Bayes factors."""

import numpy as np
import pytest

from numpyro_amortized.diagnostics import bayes_factors, classifier_calibration, confusion_matrix

PROBS = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
TRUTH = np.array([[1, 0], [0, 1], [0, 1], [1, 0]])


def test_calibration_by_hand():
    result = classifier_calibration(PROBS, TRUTH, num_bins=2, names=["a", "b"])
    # bins of model a: {.3}, none right; {.9, .8, .9}, two thirds right
    np.testing.assert_allclose(result["predicted"].sel(model="a"), [0.3, 2.6 / 3])
    np.testing.assert_allclose(result["observed"].sel(model="a"), [0, 2 / 3])
    assert result["count"].sel(model="a").values.tolist() == [1, 3]
    error = (0.3 + 3 * 0.2) / 4
    np.testing.assert_allclose(result["expected_calibration_error"], [error, error])
    brier = (2 * 0.1**2 + 2 * 0.8**2 + 2 * 0.3**2 + 2 * 0.1**2) / 4
    np.testing.assert_allclose(result["brier_score"], brier)
    assert classifier_calibration(PROBS, TRUTH)["count"].sum() == 8


def test_calibrated_probabilities_have_little_error():
    rng = np.random.default_rng(0)
    first = rng.random(20_000)
    probs = np.column_stack([first, 1 - first])
    truth = np.eye(2)[(rng.random(20_000) > first).astype(int)]
    # the share in a bin of 2,000 has a standard error of about .01
    assert classifier_calibration(probs, truth)["expected_calibration_error"].max() < 0.015
    sharper = probs**3 / np.sum(probs**3, axis=1, keepdims=True)
    assert classifier_calibration(sharper, truth)["expected_calibration_error"].min() > 0.1


def test_confusion_matrix_by_hand():
    result = confusion_matrix(PROBS, TRUTH, names=["a", "b"])
    assert result["count"].sel(true_model="a").values.tolist() == [2, 0]
    assert result["count"].sel(true_model="b").values.tolist() == [1, 1]
    assert result["share"].sel(true_model="b", predicted_model="a") == 0.5
    assert confusion_matrix(PROBS[:1], TRUTH[:1])["share"].isnull().values.tolist() == [
        [False, False],
        [True, True],
    ]


def test_bayes_factors_by_hand():
    evidences = np.log([[3.0, 1.0], [1.0, 2.0]])
    posterior = np.array([[9 / 10, 1 / 10], [3 / 5, 2 / 5]])  # with prior 3 : 1
    result = bayes_factors(posterior, evidences, prior_probs=[0.75, 0.25])
    np.testing.assert_allclose(result["estimated"], result["exact"], atol=1e-12)
    np.testing.assert_allclose(result["exact"].sel(model=1), np.log([1 / 3, 2]))
    equal = bayes_factors(posterior, evidences)
    np.testing.assert_allclose(equal["rmse"], [0, np.log(3)])


def test_errors():
    with pytest.raises(ValueError, match="Expected probs and model_indices of one shape"):
        confusion_matrix(PROBS, TRUTH[:2])
    with pytest.raises(ValueError, match="probs: expected probabilities that sum to one"):
        confusion_matrix(2 * PROBS, TRUTH)
    with pytest.raises(ValueError, match="model_indices: expected one-hot rows"):
        confusion_matrix(PROBS, 0 * TRUTH)
    with pytest.raises(ValueError, match="names: expected 2 of them"):
        confusion_matrix(PROBS, TRUTH, names=["a"])
    with pytest.raises(ValueError, match="Expected probs and log_evidences of one shape"):
        bayes_factors(PROBS, np.zeros(4))
