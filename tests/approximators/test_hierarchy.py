# SPDX-License-Identifier: Apache-2.0
"""Posteriors over groups: draws, densities, other numbers of groups, and where else they serve."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

import numpyro_amortized as npa
from numpyro_amortized.networks import CouplingFlow, DeepSet, Spline
from tests import models

LOW, HIGH = 3, 6
FLOW = partial(CouplingFlow, depth=1, widths=(8,), transform=Spline(bins=4))
SETS = partial(DeepSet, summary_size=4, widths=(8,), embedding_size=8)
BRIEF = {"epochs": 1, "num_batches": 2, "batch_size": 8, "validation": 0, "progress_bar": False}


@pytest.fixture(scope="module")
def groups():
    """Twenty groups of three members, hardly trained."""
    source = npa.ModelSimulator(models.group_means, np.zeros((20, 3)))
    approximator = npa.ContinuousApproximator(
        source, inference_network=FLOW, summary_network={"group": SETS, "y": SETS}
    )
    approximator.fit(random.key(0), **BRIEF)
    return approximator


@pytest.fixture(scope="module")
def schools():
    """Any number of schools, standard errors of which are drawn."""
    source = npa.ModelSimulator(
        models.schools_of,
        observed=("y",),
        context=lambda key: {"sigma": random.uniform(key, (HIGH,), minval=5, maxval=20)},
        sizes={"num_schools": (LOW, HIGH)},
    )
    networks = {"globals": FLOW, "locals": FLOW}
    approximator = npa.ContinuousApproximator(
        source, inference_network=networks, summary_network=SETS
    )
    approximator.fit(random.key(0), **BRIEF)
    return approximator


def data(num_groups, *lead):
    return {"y": np.random.default_rng(num_groups).normal(size=(*lead, num_groups, 3))}


def schools_data(num_schools):
    return {"y": models.EFFECTS[:num_schools], "sigma": models.SIGMA[:num_schools]}


def test_it_says_what_it_does(groups):
    said = str(groups)
    assert "factorizes over the 20 groups of plate 'group': q(mu, tau | all groups)" in said
    assert "q(theta | mu, tau, own group)" in said
    assert "CouplingFlow for the globals" in said and "hierarchical=False" in said


@pytest.mark.verify
def test_draws_have_the_density_that_comes_with_them(groups):
    draws, log_q = groups.sample_and_log_prob(random.key(1), 7, data(20, 2))
    assert {n: x.shape for n, x in draws.items()} == {
        "mu": (2, 7),
        "tau": (2, 7),
        "theta": (2, 7, 20, 1),
    }
    again = groups.log_prob({**draws, **data(20, 2)})
    np.testing.assert_allclose(again, log_q, rtol=1e-4, atol=1e-2)
    assert np.isfinite(log_q).all() and np.ptp(log_q) > 1


@pytest.mark.verify
def test_the_number_of_groups_may_vary(schools):
    assert "sigma: numbers of each group" in str(schools) and "varies from 3 to 6" in str(schools)
    draws = schools.sample(random.key(1), 4, schools_data(LOW))
    assert draws["theta"].shape == (4, LOW) and draws["mu"].shape == (4,)
    several = schools.source.sample(random.key(2), 5)
    with pytest.raises(ValueError, match="data sets of one size"):
        schools.log_prob(several)


@pytest.mark.verify
def test_padding_does_not_matter(schools):
    """The networks see no more than the groups that are there."""
    names = ("sigma", "y")
    simulations = schools.source.sample(random.key(2), 8)
    row = int(np.flatnonzero(simulations["num_schools"] == LOW)[0])
    padded = {n: simulations[n][row : row + 1] for n in (*names, "num_schools")}
    cropped = {n: padded[n][:, :LOW] for n in names}
    networks = nnx.split(schools.networks)
    exact = schools.for_groups(cropped).encode(*networks, cropped)
    got = schools.encode(*networks, padded)
    np.testing.assert_allclose(got[:, : exact.shape[1]], exact, rtol=1e-4, atol=1e-5)


def test_ancestral_draws_depend_on_globals_and_own_data_alone(groups):
    conditions, other = data(20, 2), data(20, 2)
    other["y"][:, 3] += 5
    shared = {"mu": jnp.zeros((2, 5)), "tau": jnp.ones((2, 5))}
    draw = partial(groups.ancestral_sample, random.key(1), 5)
    theta = draw(conditions, shared)["theta"]
    assert theta.shape == (2, 20, 5, 1)
    moved = draw(other, shared)["theta"]
    same = np.arange(20) != 3
    np.testing.assert_array_equal(moved[:, same], theta[:, same])
    assert (np.abs(moved[:, 3] - theta[:, 3]) > 1e-5).any()
    shifted = draw(conditions, {"mu": jnp.ones(2), "tau": jnp.ones(2)})["theta"]
    assert (np.abs(shifted - theta) > 1e-4).mean() > 0.9
    with pytest.raises(ValueError, match=r"missing: \['tau'\]"):
        draw(conditions, {"mu": jnp.zeros((2, 5))})
    with pytest.raises(ValueError, match="num_samples=5"):
        draw(conditions, {"mu": jnp.zeros((2, 4)), "tau": jnp.ones((2, 4))})


@pytest.mark.verify
def test_saved_and_loaded(groups, tmp_path):
    groups.save(tmp_path / "groups")
    loaded = npa.load(tmp_path / "groups", partial(models.group_means, np.zeros((20, 3))))
    draws = [each.sample(random.key(1), 7, data(20, 2)) for each in (loaded, groups)]
    jax.tree.map(np.testing.assert_array_equal, *draws)
    assert str(loaded) == str(groups)


def test_networks_are_named_by_factor(groups, hierarchy):
    make = partial(npa.ContinuousApproximator, groups.source, adapter=groups.adapter)
    assert "CouplingFlow(depth=2) for the locals" in str(make())
    assert "group: DeepSet(widths=(32,), spread=True)" in str(make())
    with pytest.raises(ValueError, match=r"names from .*got \['local'\]"):
        make(inference_network={"local": FLOW})
    with pytest.raises(ValueError, match="summaries of each group and of all"):
        make(summary_regularizer=jnp.sum)
    with pytest.raises(ValueError, match=r"got one of \['x'\]"):
        make(summary_network={"x": DeepSet}).fit(random.key(0), epochs=1)
    with pytest.raises(ValueError, match="only where the posterior factorizes"):
        npa.ContinuousApproximator(
            hierarchy.source, adapter=hierarchy.adapter, inference_network={"locals": FLOW}
        )
    with pytest.raises(ValueError, match="hierarchical=True"):
        hierarchy.ancestral_sample(random.key(0), 2, {"y": models.EFFECTS}, {"mu": 0.0})


@pytest.mark.verify
def test_covariates_of_other_groups_are_not_known():
    source = npa.ModelSimulator(models.eight_schools, models.SIGMA, y=models.EFFECTS)
    assert "one vector" in str(npa.ContinuousApproximator(source))
    adapter = npa.Adapter.for_posterior(source, hierarchical=True)
    schools = npa.ContinuousApproximator(source, adapter=adapter)
    with pytest.raises(ValueError, match=r"'sigma'.*has the length of the plate"):
        schools.for_groups({"y": np.zeros(9)}, warn=False)


@pytest.mark.verify
def test_more_groups_than_in_training_are_extrapolated(groups, schools):
    with pytest.warns(UserWarning, match="30 groups of plate 'group', but training saw 20"):
        draws = groups.sample(random.key(1), 4, data(30))
    assert draws["theta"].shape == (4, 30, 1)
    with pytest.warns(UserWarning, match="8 groups of plate 'school', but training saw 3 to 6"):
        assert schools.sample(random.key(1), 4, schools_data(8))["theta"].shape == (4, 8)
    later = groups.ancestral_sample(random.key(1), 4, data(33), {"mu": 0.0, "tau": 1.0})
    assert later["theta"].shape == (33, 4, 1)
    simulations = schools.source.sample(random.key(2), 5)
    padded = {n: simulations[n] for n in ("num_schools", "sigma", "y")}
    assert schools.sample(random.key(1), 4, padded)["theta"].shape == (5, 4, HIGH)


@pytest.mark.verify
def test_the_joint_draws_are_ancestral(groups):
    """Both ways to draw the locals have the same distribution."""
    joint = groups.sample(random.key(1), 4000, data(20))
    later = groups.ancestral_sample(random.key(2), 4000, data(20), joint)["theta"]
    a, b = np.asarray(joint["theta"])[..., 0].T, np.asarray(later)[..., 0]
    # five standard errors of a difference of means of 4,000 draws, and of a ratio of deviations
    assert (np.abs(a.mean(1) - b.mean(1)) < 5 * a.std(1) * np.sqrt(2 / 4000)).all()
    assert np.abs(a.std(1) / b.std(1) - 1).max() < 5 / np.sqrt(4000)


@pytest.mark.verify
def test_it_serves_where_other_posteriors_do(groups, schools):
    posterior = groups.posterior(data(20))
    assert posterior.event_shape == (22,)
    assert posterior.sample_sites(random.key(1), (3,))["theta"].shape == (3, 20, 1)
    result = npa.importance_sample(random.key(1), groups, data(20), 50)
    assert np.isfinite(result.log_weights).all()
    with pytest.warns(UserWarning, match="extrapolated"):
        assert groups.posterior(data(25)).event_shape == (27,)
    idata = schools.to_inference_data(random.key(1), schools_data(4), num_samples=8)
    assert idata["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert idata["log_likelihood"]["y"].shape == (4, 2, 4)
    assert np.isfinite(npa.importance_sample(random.key(1), schools, schools_data(4)).pareto_k)


@pytest.mark.verify
def test_guide(groups, schools):
    y = jnp.asarray(data(20)["y"])
    guide = npa.AmortizedGuide(models.group_means, groups)
    svi = SVI(models.group_means, guide, Adam(1e-4), Trace_ELBO())
    assert np.isfinite(svi.run(random.key(0), 3, y, progress_bar=False).losses).all()
    assert guide.sample_posterior(random.key(1), {}, y, sample_shape=(3,))["theta"].shape == (
        3,
        20,
        1,
    )
    few = npa.AmortizedGuide(models.schools_of, schools)
    arguments = (4, models.SIGMA[:4], models.EFFECTS[:4])
    assert few.sample_posterior(random.key(1), {}, *arguments)["theta"].shape == (4,)
