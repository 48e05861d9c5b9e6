# SPDX-License-Identifier: Apache-2.0
"""Posteriors over groups: draws, densities, other numbers of groups, and where else they serve."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.optim import Adam

import numpyro_amortized as npa
from numpyro_amortized.networks import DeepSet
from tests import models
from tests.conftest import FLOW, SETS

LOW, HIGH = 3, 6


@pytest.fixture(autouse=True, scope="module")
def unoptimized_everywhere(unoptimized_module):
    """See ``unoptimized_module``."""


@pytest.fixture(scope="module")
def groups():
    """Twenty groups of three members, hardly trained."""
    source = npa.ModelSimulator(models.group_means, np.zeros((20, 3)))
    approximator = npa.ContinuousApproximator(
        source, inference_network=FLOW, summary_network={"group": SETS, "y": SETS}
    )
    approximator.fit(random.key(0), epochs=1, num_batches=5, batch_size=32, progress_bar=False)
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
    approximator = npa.ContinuousApproximator(
        source, inference_network={"locals": FLOW, "globals": FLOW}, summary_network=SETS
    )
    approximator.fit(random.key(0), epochs=1, num_batches=5, batch_size=32, progress_bar=False)
    return approximator


def data(num_groups, *lead):
    return {"y": np.random.default_rng(num_groups).normal(size=(*lead, num_groups, 3))}


def schools_data(num_schools):
    return {"y": models.EFFECTS[:num_schools], "sigma": models.SIGMA[:num_schools]}


def test_it_says_what_it_does(groups, schools):
    said = str(groups)
    assert "factorizes over the 20 groups of plate 'group': q(mu, tau | all groups)" in said
    assert "q(theta | mu, tau, own group)" in said
    assert "CouplingFlow(depth=2" in said and "hierarchical=False" in said
    assert "sigma: numbers of each group" in str(schools)
    assert "varies from 3 to 6" in str(schools)


def test_few_groups_are_one_vector():
    source = npa.ModelSimulator(models.eight_schools, models.SIGMA, y=models.EFFECTS)
    said = str(npa.ContinuousApproximator(source))
    assert "one vector: the latents of the groups are few, 10 numbers" in said


def test_draws_have_the_density_that_comes_with_them(groups, schools):
    for approximator, conditions in ((groups, data(20)), (schools, schools_data(5))):
        draws, log_q = approximator.sample_and_log_prob(random.key(1), 7, conditions)
        assert np.isfinite(log_q).all()
        again = approximator.log_prob({**draws, **conditions})
        np.testing.assert_allclose(again, log_q, rtol=1e-4, atol=1e-2)
        one = {name: x[2] for name, x in draws.items()}
        np.testing.assert_allclose(
            approximator.log_prob({**one, **conditions}), again[2], rtol=1e-4, atol=1e-2
        )


def test_draws_of_batches_are_of_the_sites_shapes(groups):
    draws = groups.sample(random.key(1), 4, data(20, 2))
    assert {n: x.shape for n, x in draws.items()} == {
        "mu": (2, 4),
        "tau": (2, 4),
        "theta": (2, 4, 20, 1),
    }


def test_the_number_of_groups_may_vary(schools):
    for size in (LOW, HIGH):
        draws = schools.sample(random.key(1), 4, schools_data(size))
        assert draws["theta"].shape == (4, size) and draws["mu"].shape == (4,)
    several = schools.source.sample(random.key(2), 5)
    conditions = {name: several[name] for name in ("num_schools", "sigma", "y")}
    assert schools.sample(random.key(1), 4, conditions)["theta"].shape == (5, 4, HIGH)
    with pytest.raises(ValueError, match="data sets of one size"):
        schools.log_prob({**several})


def test_padding_does_not_matter(schools):
    """The networks see no more than the groups that are there."""
    simulations = schools.source.sample(random.key(2), 1)
    size = int(simulations["num_schools"][0])
    names = ("num_schools", "sigma", "y")
    padded = schools.encode(*nnx_split(schools), {n: simulations[n] for n in names})
    own = schools.for_groups({n: simulations[n][:, :size] for n in ("sigma", "y")})
    exact = own.encode(*nnx_split(own), {n: simulations[n][:, :size] for n in ("sigma", "y")})
    np.testing.assert_allclose(padded[:, : exact.shape[1]], exact, rtol=1e-4, atol=1e-5)


def nnx_split(approximator):
    from flax import nnx

    return nnx.split(approximator.networks)


def test_more_groups_than_in_training_are_extrapolated(groups, schools):
    with pytest.warns(UserWarning, match="30 groups of plate 'group', but training saw 20"):
        draws = groups.sample(random.key(1), 4, data(30))
    assert draws["theta"].shape == (4, 30, 1)
    with pytest.warns(UserWarning, match="8 groups of plate 'school', but training saw 3 to 6"):
        assert schools.sample(random.key(1), 4, schools_data(8))["theta"].shape == (4, 8)
    source = npa.ModelSimulator(models.eight_schools, models.SIGMA, y=models.EFFECTS)
    adapter = npa.Adapter.for_posterior(source, hierarchical=True)
    fixed = npa.ContinuousApproximator(source, adapter=adapter)
    with pytest.raises(ValueError, match=r"'sigma'.*has the length of the plate"):
        fixed.for_groups({"y": np.zeros(9)}, warn=False)


def test_ancestral_draws_depend_on_globals_and_own_data_alone(groups):
    conditions = data(20, 2)
    shared = {"mu": jnp.zeros((2, 5)), "tau": jnp.ones((2, 5))}
    draws = groups.ancestral_sample(random.key(1), 5, conditions, shared)
    assert draws.keys() == {"theta"} and draws["theta"].shape == (2, 20, 5, 1)
    other = {"y": conditions["y"].copy()}
    other["y"][:, 3] += 5
    moved = groups.ancestral_sample(random.key(1), 5, other, shared)["theta"]
    same = np.arange(20) != 3
    np.testing.assert_array_equal(moved[:, same], draws["theta"][:, same])
    assert (np.abs(moved[:, 3] - draws["theta"][:, 3]) > 1e-4).any()
    shifted = groups.ancestral_sample(
        random.key(1), 5, conditions, {"mu": jnp.ones((2, 5)), "tau": jnp.ones((2, 5))}
    )
    assert (np.abs(shifted["theta"] - draws["theta"]) > 1e-4).mean() > 0.9


def test_ancestral_draws_of_any_number_of_groups(groups):
    draws = groups.ancestral_sample(
        random.key(1), 5, data(33), {"mu": jnp.zeros(()), "tau": jnp.ones(())}
    )
    assert draws["theta"].shape == (33, 5, 1)
    with pytest.raises(ValueError, match="missing: \\['tau'\\]"):
        groups.ancestral_sample(random.key(1), 5, data(20), {"mu": jnp.zeros(5)})
    with pytest.raises(ValueError, match="num_samples=5"):
        groups.ancestral_sample(
            random.key(1), 5, data(20), {"mu": jnp.zeros(4), "tau": jnp.ones(4)}
        )


def test_the_joint_draws_are_ancestral(groups):
    """Both ways to draw the locals have the same distribution, draw by draw of the globals."""
    joint = groups.sample(random.key(1), 4000, data(20))
    locals_ = groups.ancestral_sample(random.key(2), 4000, data(20), joint)["theta"]
    a, b = np.asarray(joint["theta"])[..., 0].T, np.asarray(locals_)[..., 0]
    # five standard errors of a difference of means of 4,000 draws
    assert (np.abs(a.mean(1) - b.mean(1)) < 5 * a.std(1) * np.sqrt(2 / 4000)).all()
    assert np.abs(a.std(1) / b.std(1) - 1).max() < 5 / np.sqrt(4000)


def test_it_serves_where_other_posteriors_do(groups):
    posterior = groups.posterior(data(20))
    assert posterior.event_shape == (22,)
    assert posterior.sample_sites(random.key(1), (3,))["theta"].shape == (3, 20, 1)
    result = npa.importance_sample(random.key(1), groups, data(20), 50)
    assert np.isfinite(result.log_weights).all()
    with pytest.warns(UserWarning, match="extrapolated"):
        assert groups.posterior(data(25)).event_shape == (27,)


def test_arviz(schools):
    idata = schools.to_inference_data(random.key(1), schools_data(4), num_samples=8)
    assert idata["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert idata["log_likelihood"]["y"].shape == (4, 2, 4)


def test_guide(groups):
    y = jnp.asarray(data(20)["y"])
    guide = npa.AmortizedGuide(models.group_means, groups)
    svi = SVI(models.group_means, guide, Adam(1e-4), Trace_ELBO())
    assert np.isfinite(svi.run(random.key(0), 3, y, progress_bar=False).losses).all()
    predictive = Predictive(models.group_means, guide=guide, params={}, num_samples=3)
    assert predictive(random.key(1), y)["theta"].shape == (3, 20, 1)


def test_saved_and_loaded(groups, tmp_path):
    groups.save(tmp_path / "groups")
    loaded = npa.load(tmp_path / "groups", partial(models.group_means, np.zeros((20, 3))))
    expected = groups.sample(random.key(1), 4, data(20))
    jax.tree.map(np.testing.assert_array_equal, loaded.sample(random.key(1), 4, data(20)), expected)
    assert str(loaded) == str(groups)


def test_networks_are_named_by_factor():
    source = npa.ModelSimulator(models.eight_schools, models.SIGMA, y=models.EFFECTS)
    adapter = npa.Adapter.for_posterior(source, hierarchical=True)
    make = partial(npa.ContinuousApproximator, source, adapter=adapter)
    with pytest.raises(ValueError, match=r"names from .*got \['local'\]"):
        make(inference_network={"local": FLOW})
    with pytest.raises(ValueError, match="got one of \\['y'\\]"):
        make(summary_network={"y": DeepSet}).fit(random.key(0), epochs=1)
    with pytest.raises(ValueError, match="only where the posterior factorizes"):
        npa.ContinuousApproximator(source, inference_network={"locals": FLOW})
    with pytest.raises(ValueError, match="hierarchical=True"):
        flat = npa.ContinuousApproximator(source)
        flat.ancestral_sample(random.key(0), 2, {"y": models.EFFECTS}, {"mu": 0.0})
