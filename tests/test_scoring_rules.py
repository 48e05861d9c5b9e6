# SPDX-License-Identifier: Apache-2.0
"""Scoring rules are least at the truth, and their estimates are admissible."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax, random
from scipy import stats

from numpyro_amortized import scoring_rules

RULES = [
    scoring_rules.Mean(),
    scoring_rules.Median(),
    scoring_rules.NormedDifference(1.5),
    scoring_rules.Quantiles([0.1, 0.5, 0.75, 0.9]),
    scoring_rules.EnergyScore(5),
    scoring_rules.CRPS(5),
    scoring_rules.MultivariateNormal(),
    scoring_rules.GaussianMixture(3),
    scoring_rules.CrossEntropy(4),
    scoring_rules.BrierScore(4),
]
PARAMETRIC = [scoring_rules.MultivariateNormal(), scoring_rules.GaussianMixture(3)]
NORMAL = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)  # stands for the normal distribution


def minimized(rule, variables, size, seed=0):
    """The estimates with the least mean score of the variables, shape ``(n, size)``."""
    start = 0.1 * random.normal(random.key(seed), (rule.num_outputs(size),))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))

    def mean_score(outputs):
        estimates = rule.estimates(outputs, size)
        return jnp.mean(jax.vmap(partial(rule.score, estimates))(variables))

    def step(carry, _):
        outputs, state = carry
        updates, state = optimizer.update(jax.grad(mean_score)(outputs), state)
        return (outputs + updates, state), None

    run = jax.jit(lambda c: lax.scan(step, c, length=1500)[0])
    return rule.estimates(run((start, optimizer.init(start)))[0], size)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_shapes_and_gradients(rule):
    outputs = random.normal(random.key(0), (7, 2, rule.num_outputs(3)))
    truth = jnp.ones((7, 2, 3))
    estimates = jax.eval_shape(lambda z: rule.estimates(z, 3), outputs)
    assert {n: x.shape[2:] for n, x in estimates.items()} == rule.heads(3)
    assert jax.eval_shape(rule.score, estimates, truth).shape == (7, 2)
    grad = jax.jit(jax.grad(lambda z: rule.score(rule.estimates(z, 3), truth).sum()))
    for at in (outputs, jnp.zeros_like(outputs)):
        assert jnp.isfinite(grad(at)).all()


def test_point_estimates_are_their_functionals():
    skewed = jnp.exp(jnp.asarray(NORMAL))[:, None]
    mean = minimized(scoring_rules.Mean(), skewed, 1)["value"]
    # the mean of these points, not exp(0); the median of a log-normal is 1
    np.testing.assert_allclose(mean, [skewed.mean()], rtol=1e-3)
    median = minimized(scoring_rules.Median(), skewed, 1)["value"]
    np.testing.assert_allclose(median, [1.0], atol=0.01)


def test_quantiles_are_those_of_the_normal_distribution():
    levels = [0.05, 0.3, 0.5, 0.8, 0.95]
    found = minimized(scoring_rules.Quantiles(levels), jnp.asarray(NORMAL)[:, None], 1)
    for level in levels:
        np.testing.assert_allclose(found[str(level)], [stats.norm.ppf(level)], atol=0.01)


def test_quantiles_are_ordered():
    rule = scoring_rules.Quantiles([0.1, 0.4, 0.5, 0.9])
    found = rule.estimates(5 * random.normal(random.key(1), (500, rule.num_outputs(2))), 2)
    values = np.stack([found[str(level)] for level in rule.levels])
    assert (np.diff(values, axis=0) >= 0).all()


def test_the_least_crps_is_at_the_midpoint_quantiles():
    found = minimized(scoring_rules.CRPS(7), jnp.asarray(NORMAL)[:, None], 1)["points"]
    expected = stats.norm.ppf((np.arange(7) + 0.5) / 7)
    np.testing.assert_allclose(np.sort(found[:, 0]), expected, atol=0.02)


@pytest.mark.verify
def test_the_energy_score_is_least_at_the_truth():
    truth = np.array([[0.0, 0.0], [2.0, 1.0], [-1.0, 2.0]])
    found = minimized(scoring_rules.EnergyScore(3), jnp.asarray(truth), 2)["points"]
    np.testing.assert_allclose(
        np.asarray(found)[np.argsort(found[:, 0])], truth[np.argsort(truth[:, 0])], atol=0.02
    )


@pytest.mark.parametrize("rule", [scoring_rules.CrossEntropy(3), scoring_rules.BrierScore(3)])
def test_probabilities_are_frequencies(rule):
    categories = jnp.repeat(jnp.arange(3), jnp.array([2, 3, 5]), total_repeat_length=10)[:, None]
    found = minimized(rule, categories, 1)["probs"]
    np.testing.assert_allclose(found, [[0.2, 0.3, 0.5]], atol=0.005)


@pytest.mark.parametrize("rule", PARAMETRIC, ids=lambda rule: type(rule).__name__)
def test_densities_integrate_to_one_and_are_those_of_the_draws(rule):
    estimates = rule.estimates(random.normal(random.key(2), (rule.num_outputs(1),)), 1)
    grid = jnp.linspace(-15, 15, 6001)[:, None]
    density = jnp.exp(jax.jit(jax.vmap(partial(rule.log_prob, estimates)))(grid))
    np.testing.assert_allclose(jnp.trapezoid(density, grid[:, 0]), 1, rtol=1e-3)
    mean = jnp.trapezoid(density * grid[:, 0], grid[:, 0])
    draws = np.asarray(rule.sample(random.key(3), estimates, (20_000,)))
    assert draws.shape == (20_000, 1)
    # five standard errors
    np.testing.assert_allclose(draws.mean(), mean, atol=5 * draws.std() / 20_000**0.5)


def test_bad_options_are_refused():
    for levels in ([], [0.5, 0.5], [0.0, 0.5], [0.9, 0.1]):
        with pytest.raises(ValueError, match="levels: expected increasing"):
            scoring_rules.Quantiles(levels)
    with pytest.raises(ValueError, match="power: expected at least 1"):
        scoring_rules.NormedDifference(0.5)
