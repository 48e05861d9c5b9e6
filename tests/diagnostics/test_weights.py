# SPDX-License-Identifier: Apache-2.0
"""Importance weights of many data sets."""

import numpy as np
import pytest
from jax import random
from scipy import stats

from numpyro_amortized.diagnostics import importance_weights, plot_pareto_k, report
from numpyro_amortized.diagnostics.page import picture
from tests.diagnostics.exact import NormalMean


def log_evidence(y):
    """Of standard normal observations around a standard normal mean."""
    size = y.shape[-1]
    return stats.multivariate_normal(np.zeros(size), np.eye(size) + 1).logpdf(y)


def test_a_good_posterior_has_weights_to_be_trusted(normal_mean):
    y = np.asarray(normal_mean.source.sample(random.key(5), 40)["y"])
    weights = importance_weights(random.key(0), normal_mean, {"y": y}, num_samples=1000)
    assert weights["pareto_k"].dims == ("dataset",) and weights.sizes["dataset"] == 40
    np.testing.assert_allclose(weights.attrs["threshold"], 1 - 1 / 3)
    assert weights["is_reliable"][weights["pareto_k"] <= 2 / 3].all()
    assert (weights["efficiency"] > 0.5).mean() > 0.9 and weights["efficiency"].max() <= 1
    # errors of the evidence are nearly normal: all 40 of them are within five standard errors
    error = np.abs(weights["log_evidence"] - log_evidence(y))
    assert (error < 5 * weights["log_evidence_se"] + 1e-3).all()


@pytest.mark.verify
def test_simulations_by_batches(normal_mean):
    weights = importance_weights(
        random.key(0), normal_mean, num_datasets=7, num_samples=200, batch_size=3
    )
    assert weights.sizes["dataset"] == 7 and np.isfinite(weights["log_evidence"]).all()


@pytest.mark.verify
def test_picture(normal_mean):
    weights = importance_weights(random.key(0), normal_mean, num_datasets=5, num_samples=200)
    collection = plot_pareto_k(weights, backend="matplotlib")
    points = collection.viz["points"]["pareto_k"].item().get_offsets()
    np.testing.assert_allclose(points[:, 1], weights["pareto_k"])
    assert picture(collection, "").png.startswith(b"\x89PNG")


@pytest.mark.verify
def test_check(normal_mean, tmp_path):
    options = {"num_datasets": 50, "num_samples": 200, "progress_bar": False}
    result = report(
        random.key(1), normal_mean, {"y": np.zeros(10)}, path=tmp_path / "page.html", **options
    )
    found = {c.title: c for c in result.checks if c.title.startswith("Importance weights")}
    assert set(found) == {
        "Importance weights of simulations",
        "Importance weights of your data sets",
    }
    assert (
        "of 50 simulations, where Pareto k-hat is at most 0.57"
        in found["Importance weights of simulations"].verdict
    )
    assert all(check.passed is None for check in found.values())


def test_errors(normal_mean):
    with pytest.raises(ValueError, match="num_samples: expected more than 10"):
        importance_weights(random.key(0), normal_mean, num_samples=10)
    with pytest.raises(ValueError, match="batch_size"):
        importance_weights(random.key(0), normal_mean, num_datasets=5, batch_size=0)
    with pytest.raises(TypeError, match="expected one that has a density"):
        importance_weights(random.key(0), NormalMean())
