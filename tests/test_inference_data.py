# SPDX-License-Identifier: Apache-2.0
"""Results in ArviZ's schema."""

import arviz as az
import jax
import numpy as np
import pytest
import xarray
from jax import random
from numpyro.infer import log_likelihood
from scipy import stats

from tests import models

NUM_SAMPLES = 40


@pytest.fixture(scope="module")
def tree(hierarchy):
    return hierarchy.to_inference_data(
        random.key(1), {"y": models.EFFECTS}, num_samples=NUM_SAMPLES
    )


@pytest.fixture(scope="module")
def batch(hierarchy):
    data = {"y": np.stack([models.EFFECTS, -models.EFFECTS])}
    return hierarchy.to_inference_data(random.key(1), data, num_samples=NUM_SAMPLES)


def dims(tree):
    return {
        group: {name: values.dims for name, values in tree[group].data_vars.items()}
        for group in tree.children
    }


def test_groups_dims_and_coords(tree):
    draws, members = ("chain", "draw"), ("chain", "draw", "school")
    latents = {"mu": draws, "tau": draws, "theta": members}
    assert dims(tree) == {
        "posterior": latents,
        "posterior_predictive": {"y": members},
        "log_likelihood": {"y": members},
        "log_prior": latents,
        "sample_stats": {"log_q": draws},
        "prior": latents,
        "prior_predictive": {"y": members},
        "observed_data": {"y": ("school",)},
        "constant_data": {"sigma": ("school",)},
    }
    assert dict(tree["posterior"].sizes) == {"chain": 4, "draw": NUM_SAMPLES // 4, "school": 8}
    np.testing.assert_array_equal(tree["posterior"].coords["school"], np.arange(8))
    np.testing.assert_allclose(tree["observed_data"]["y"], models.EFFECTS)
    np.testing.assert_allclose(tree["constant_data"]["sigma"], models.SIGMA)


def test_a_batch_has_a_dimension_of_its_own(batch):
    for group in (
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "log_prior",
        "sample_stats",
    ):
        for values in batch[group].data_vars.values():
            assert values.dims[:3] == ("chain", "draw", "dataset"), group
    assert batch["observed_data"]["y"].dims == ("dataset", "school")
    assert batch["prior"]["theta"].dims == ("chain", "draw", "school")
    assert batch["posterior"].sizes["dataset"] == 2
    np.testing.assert_allclose(batch["observed_data"]["y"][1], -models.EFFECTS)


def test_arviz_reads_it(tree, batch):
    summary = az.summary(tree)
    assert len(summary) == 10 and np.isfinite(summary["mean"].astype(float)).all()
    assert len(az.summary(batch["posterior"].dataset.isel(dataset=0))) == 10


def flat(tree, group, name):
    values = tree[group][name].values
    return values.reshape(-1, *values.shape[2:])


def test_log_likelihood_is_that_of_numpyro(tree):
    draws = {name: flat(tree, "posterior", name) for name in ("mu", "tau", "theta")}
    expected = log_likelihood(models.eight_schools, draws, models.SIGMA, y=models.EFFECTS)
    np.testing.assert_allclose(
        flat(tree, "log_likelihood", "y"), expected["y"], rtol=1e-4, atol=1e-4
    )


def test_log_prior_is_that_of_scipy(tree):
    mu, tau, theta = (flat(tree, "posterior", name) for name in ("mu", "tau", "theta"))
    expected = {
        "mu": stats.norm(0, 5).logpdf(mu),
        "tau": stats.halfcauchy(scale=5).logpdf(tau),
        "theta": stats.norm(mu[:, None], tau[:, None]).logpdf(theta),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(flat(tree, "log_prior", name), value, rtol=1e-3, atol=1e-3)


def test_log_q_is_the_density_of_the_draws(tree, hierarchy):
    draws = {name: flat(tree, "posterior", name) for name in ("mu", "tau", "theta")}
    log_q = hierarchy.log_prob(draws | {"y": models.EFFECTS})
    np.testing.assert_allclose(flat(tree, "sample_stats", "log_q"), log_q, rtol=1e-3, atol=1e-2)


@pytest.mark.verify
def test_predictions_belong_to_the_draws(hierarchy):
    data = {"y": models.EFFECTS}
    tree = hierarchy.to_inference_data(random.key(2), data, num_samples=4000)
    residuals = flat(tree, "posterior_predictive", "y") - flat(tree, "posterior", "theta")
    # standardized residuals of 4,000 draws: five standard errors
    error = 5 / np.sqrt(4000)
    np.testing.assert_allclose((residuals / models.SIGMA).mean(0), 0, atol=error)
    np.testing.assert_allclose((residuals / models.SIGMA).std(0), 1, atol=error)


def test_reproducible(hierarchy, tree):
    data = {"y": models.EFFECTS}
    again = hierarchy.to_inference_data(random.key(1), data, num_samples=NUM_SAMPLES)
    # not assert_identical: the time of creation is an attribute
    xarray.testing.assert_equal(again["posterior"].dataset, tree["posterior"].dataset)


@pytest.mark.verify
def test_no_likelihood_where_latents_are_marginalized(approximate):
    approximator = approximate(
        models.eight_schools, models.SIGMA, models.EFFECTS, sites=("mu", "tau")
    )
    approximator.fit(random.key(0), epochs=1, num_batches=5, progress_bar=False)
    data = {"y": models.EFFECTS}
    tree = approximator.to_inference_data(random.key(0), data, num_samples=NUM_SAMPLES)
    assert "log_likelihood" not in tree.children
    assert set(tree["log_prior"].data_vars) == set(tree["posterior"].data_vars) == {"mu", "tau"}
    assert tree["posterior_predictive"]["y"].shape == (4, NUM_SAMPLES // 4, 8)


def test_written_and_read(tree, batch, tmp_path):
    for name, original in (("one", tree), ("batch", batch)):
        original.to_netcdf(tmp_path / f"{name}.nc")
        with xarray.open_datatree(tmp_path / f"{name}.nc") as read:
            assert set(read.children) == set(original.children)
            for group in read.children:
                xarray.testing.assert_allclose(read[group].dataset, original[group].dataset)


@pytest.mark.parametrize("num_samples", [1, 10, 1001])
def test_draws_must_fill_the_chains(hierarchy, num_samples):
    with pytest.raises(ValueError, match=f"num_samples: .*multiple of 4.*got {num_samples}"):
        hierarchy.to_inference_data(random.key(0), {"y": models.EFFECTS}, num_samples=num_samples)


@pytest.mark.verify
def test_few_draws_give_no_warning(hierarchy):
    tree = hierarchy.to_inference_data(random.key(0), {"y": models.EFFECTS}, num_samples=4)
    assert jax.tree.leaves(dict(tree["posterior"].sizes)) == [4, 1, 8]
