# SPDX-License-Identifier: Apache-2.0
"""Ensembles: one program, mixtures, weights, agreement."""

from functools import partial

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import numpyro_amortized as npa
from numpyro_amortized import scoring_rules
from numpyro_amortized.approximators.mixing import places_of_draws, stacking
from numpyro_amortized.networks import MLP
from tests import models
from tests.conftest import SETS

FIT = {"num_batches": 40, "batch_size": 64, "progress_bar": False}
CONDITIONS = {"y": np.array([[-0.5, 1.0, 0.2, 0.1], [1.0, 2.0, 0.5, 0.7]])}
RULES = {"mean": scoring_rules.Mean(), "mixture": scoring_rules.GaussianMixture(2)}
_COMPILED: list[str] = []


def _record(event, duration, fun_name="", **_):
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_record)


def make(simulator):
    rules = partial(
        npa.ScoringRuleApproximator,
        simulator,
        subnet=partial(MLP, widths=(16,)),
        adapter=npa.Adapter.for_posterior(simulator),
        summary_network=SETS,
    )
    return {
        "normal": rules(scoring_rules={"normal": scoring_rules.MultivariateNormal()}),
        "rules": rules(scoring_rules=RULES),
    }


@pytest.fixture(scope="module")
def simulator():
    return npa.ModelSimulator(models.normal_mean, np.zeros(4))


@pytest.fixture(scope="module")
def ensemble(simulator):
    approximator = npa.EnsembleApproximator(make(simulator))
    before = len(_COMPILED)
    approximator.fit(random.key(0), epochs=1, **FIT)
    trained = [name for name in _COMPILED[before:] if "_run_load" in name]
    assert len(trained) == 1, trained
    return approximator


@pytest.mark.verify
def test_density_of_the_mixture_is_that_of_its_draws_and_integrates_to_one(ensemble):
    mu = np.linspace(-6, 6, 1001, dtype=np.float32)
    data = {"mu": np.tile(mu, (2, 1)), **CONDITIONS}
    weights = {"normal": 0.7, "rules": 0.3}
    log_q = ensemble.log_prob(data, member_weights=weights)
    density = np.exp(np.asarray(log_q, float))
    np.testing.assert_allclose(density.sum(1) * (mu[1] - mu[0]), 1, atol=2e-3)
    each = ensemble.log_prob(data, merge_members=False)
    assert set(each) == set(weights)
    mixed = sum(w * np.exp(np.asarray(each[n], float)) for n, w in weights.items())
    np.testing.assert_allclose(density, mixed, rtol=1e-4)

    draws = ensemble.sample(random.key(1), 4001, CONDITIONS, member_weights=weights)["mu"]
    assert draws.shape == (2, 4001)
    # distribution functions differ by less than 2 sqrt(1 / 4001), the Kolmogorov distance at 1e-3
    exact = np.cumsum(density, axis=1) * (mu[1] - mu[0])
    found = [np.searchsorted(np.sort(row), mu) / 4001 for row in np.asarray(draws)]
    assert np.abs(found - exact).max() < 2 / 4001**0.5


@pytest.mark.verify
def test_members_apart(ensemble):
    one = {"y": CONDITIONS["y"][0]}
    draws = ensemble.sample(random.key(1), 3, one, merge_members=False)
    assert {name: x["mu"].shape for name, x in draws.items()} == dict.fromkeys(
        ensemble.members, (3,)
    )
    assert ensemble.log_prob({"mu": 0.1, **one}).shape == ()
    with pytest.raises(ValueError, match="member_weights: expected none"):
        ensemble.sample(random.key(1), 3, one, merge_members=False, member_weights=[1, 0])
    with pytest.raises(ValueError, match=r"member_weights: expected probabilities.*'normal'"):
        ensemble.log_prob({"mu": 0.1, **one}, member_weights=[0.5, 0.6])


def test_estimates_by_member(ensemble):
    by_member = ensemble.estimate(CONDITIONS)
    assert set(by_member) == set(ensemble.members)
    value = by_member["rules"]["mu"]["mean"]["value"]
    assert value.shape == (2,)
    np.testing.assert_array_equal(
        ensemble.estimate(CONDITIONS, groupby="variable")["mu"]["rules"]["mean"]["value"], value
    )
    np.testing.assert_array_equal(
        ensemble.estimate(CONDITIONS, groupby="score")["mean"]["rules"]["mu"]["value"], value
    )


@pytest.mark.verify
def test_posterior_is_the_mixture(ensemble):
    posterior = ensemble.posterior(CONDITIONS)
    vectors = posterior.sample(random.key(0), (5,))
    sites = posterior.constrain(vectors)
    # the prior is standard normal, so that the network's variable is the site
    log_q = ensemble.log_prob({"mu": sites["mu"].T, **CONDITIONS})
    np.testing.assert_allclose(posterior.log_prob(vectors).T, log_q, atol=1e-4)


@pytest.mark.verify
def test_results_go_to_arviz(ensemble):
    tree = ensemble.to_inference_data(random.key(0), CONDITIONS, num_samples=8)
    assert tree["posterior"]["mu"].sizes == {"chain": 4, "draw": 2, "dataset": 2}


def test_saved_and_loaded(ensemble, tmp_path):
    ensemble.save(tmp_path / "saved")
    loaded = npa.load(tmp_path / "saved", partial(models.normal_mean, np.zeros(4)))
    assert list(loaded.members) == list(ensemble.members)
    data = {"mu": np.array([0.1, -0.3]), **CONDITIONS}
    for merged in (True, False):
        first, second = (a.log_prob(data, merge_members=merged) for a in (ensemble, loaded))
        jax.tree.map(np.testing.assert_array_equal, first, second)
    assert loaded.members["normal"].modules is loaded.modules["normal"]


def test_members_must_agree(simulator):
    members = make(simulator)
    other = npa.ModelSimulator(models.normal_mean, np.zeros(5))
    with pytest.raises(ValueError, match="'far' learns from other simulations than 'normal'"):
        npa.EnsembleApproximator({**members, "far": npa.ContinuousApproximator(other)})
    adapter = npa.Adapter.for_posterior(simulator, sets={"y": None})
    vector = npa.ContinuousApproximator(simulator, adapter=adapter)
    with pytest.raises(ValueError, match="'vector' has another adapter than 'normal'"):
        npa.EnsembleApproximator({**members, "vector": vector})
    with pytest.raises(ValueError, match="expected at least one"):
        npa.EnsembleApproximator({})
    ratio = npa.EnsembleApproximator({**members, "ratio": npa.RatioApproximator(simulator)})
    with pytest.raises(ValueError, match=r"a density, got.*'ratio': 'RatioApproximator'"):
        ratio.sample(random.key(0), 2, CONDITIONS)


@pytest.mark.parametrize("weights, num_samples", [([0.5, 0.25, 0.25], 10), ([0.1, 0.0, 0.9], 7)])
def test_every_draw_has_its_probability(weights, num_samples):
    weights = np.array(weights)
    keys = random.split(random.key(0), 100)
    places = np.stack([places_of_draws(key, weights, num_samples) for key in keys])
    assert all(len(set(row)) == num_samples for row in places)
    ends = np.cumsum(np.ceil(weights * num_samples))
    counts = np.stack(
        [
            (np.searchsorted(ends, row, "right") == k).sum(0)
            for k, row in ((k, places.T) for k in range(3))
        ]
    )
    assert np.abs(counts - (weights * num_samples)[:, None]).max() < 1
    # a remainder is drawn in proportion: five standard errors of a share of 100 draws
    error = np.abs(counts.mean(1) - weights * num_samples)
    assert error.max() < 5 * (0.25 / 100) ** 0.5


def test_stacking_recovers_the_weights_of_a_mixture():
    rng = np.random.default_rng(0)
    x = np.where(rng.random(20_000) < 0.3, rng.normal(-2, 1, 20_000), rng.normal(2, 1, 20_000))
    centers = np.array([-2.0, 2.0, 30.0])
    log_densities = -((x - centers[:, None]) ** 2) / 2
    # standard error of the share: about 0.0035
    np.testing.assert_allclose(stacking(jnp.asarray(log_densities)), [0.3, 0.7, 0], atol=0.015)


@pytest.mark.verify
def test_a_spoilt_member_has_no_weight(ensemble, simulator):
    bank = simulator.sample(random.key(7), 500)
    weights = ensemble.stacking_weights(bank)
    assert set(weights) == set(ensemble.members)
    np.testing.assert_allclose(sum(weights.values()), 1, atol=1e-4)
    score = float(jnp.mean(ensemble.log_prob(bank, member_weights=weights)))
    alone = ensemble.log_prob(bank, merge_members=False)
    assert score > max(float(jnp.mean(x)) for x in alone.values()) - 1e-4
