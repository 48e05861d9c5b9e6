# SPDX-License-Identifier: Apache-2.0
"""Bayes factors and calibration of model comparison at full size, run by ``make verify``."""

import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from tests.approximators.test_model_comparison import log_bayes_factor, models

pytestmark = pytest.mark.verify


def test_default_networks_are_accurate_and_calibrated():
    approximator = npa.ModelComparisonApproximator(models())
    approximator.fit(random.key(0), progress_bar=False)
    draws = approximator.source.sample(random.key(1), 20_000)
    exact = log_bayes_factor(np.asarray(draws["y"]))
    learned = np.asarray(approximator.log_bayes_factors({"y": draws["y"]}))[:, 1]
    error = np.abs(learned - exact)[:2000][np.abs(exact[:2000]) < 5].mean()
    probs = np.asarray(approximator.predict({"y": draws["y"]}))[:, 1]
    calibration = expected_calibration_error(probs, np.asarray(draws["model_indices"])[:, 1])
    print(f"mean absolute error of log BF {error:.4f}, ECE {calibration:.4f}")
    assert error <= 0.15
    # 15 bins of 20,000: the exact probabilities have about .005 from chance alone
    assert calibration <= 0.012


def expected_calibration_error(probs, truths, num_bins=15):
    """Mean of |frequency - probability| over bins of the probability, weighted by their counts."""
    bins = np.minimum((probs * num_bins).astype(int), num_bins - 1)
    gaps = np.abs([(truths - probs)[bins == k].sum() for k in range(num_bins)])
    return gaps.sum() / len(probs)
