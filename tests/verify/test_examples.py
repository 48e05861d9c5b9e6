# SPDX-License-Identifier: Apache-2.0
"""The full results of the examples, beside references that no network was needed for."""

import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size, gelman_rubin

from examples import black_box, learned_likelihood, model_comparison, time_series

pytestmark = pytest.mark.verify


def errors(draws, reference):
    """Of each mean, in posterior standard deviations, and of each standard deviation, relative."""
    return {
        name: (
            abs(draws[name].mean() - reference[name].mean()) / reference[name].std(),
            abs(draws[name].std() / reference[name].std() - 1),
        )
        for name in reference
    }


@pytest.fixture
def arguments(tmp_path):
    return ["--output", str(tmp_path)]


def test_model_comparison(arguments):
    """Probabilities are exact up to the error of the grids, which is checked with finer ones."""
    result = model_comparison.main(arguments)
    difference = result["learned"] - result["exact"]
    # a classifier of 300 data sets: the mean error is known to within a tenth of itself
    assert np.abs(difference[1:]).mean() < 0.03
    assert np.abs(difference[0]).max() < 0.06


def test_evidences_of_the_grids():
    """The constant rate's evidence is known in closed form: a gamma prior is conjugate."""
    from scipy.special import gammaln

    deaths, n = model_comparison.DEATHS, len(model_comparison.DEATHS)
    a, b = model_comparison.SHAPE, model_comparison.RATE
    known = a * np.log(b) - gammaln(a) - gammaln(deaths + 1).sum()
    known += gammaln(a + deaths.sum()) - (a + deaths.sum()) * np.log(b + n)
    np.testing.assert_allclose(model_comparison.log_evidences(deaths[None])[0, 0], known, atol=1e-3)


def test_black_box(arguments):
    """20,000 draws of each: Monte Carlo errors of means are below 0.01 sd."""
    result = black_box.main(arguments)
    for name, (mean, sd) in errors(result["learned"], result["exact"]).items():
        assert mean < 0.15 and sd < 0.15, name


def test_final_sizes_are_those_of_the_simulator():
    """Shares of 300 seasons of 287 households, within five standard errors."""
    rng = np.random.default_rng(0)
    community, household = np.array(0.85), np.array(0.8)
    seasons = [black_box.epidemic(rng, community, household)["table"] ** 2 for _ in range(300)]
    expected = black_box.final_sizes(community, household) * black_box.TOTALS[:, None]
    mean, expected = np.mean(seasons, axis=0), expected[black_box.POSSIBLE]
    assert (np.abs(mean - expected) < 5 * np.sqrt(expected / 300) + 1e-9).all()


def test_learned_likelihood(arguments):
    """2,000 draws of NUTS for each: Monte Carlo errors of means are near 0.05 sd."""
    result = learned_likelihood.main(arguments)
    for name, (mean, sd) in errors(result["learned"], result["exact"]).items():
        assert mean < 0.25 and sd < 0.2, name


def test_race_density_is_that_of_the_simulator():
    """It integrates to one, and gives the shares of choices and fast responses simulated."""
    import jax.numpy as jnp
    from jax import random

    latents = {name: jnp.asarray(value) for name, value in learned_likelihood.TRUTH.items()}
    time = np.linspace(0.25, 8, 40_001).astype(np.float32)[1:]
    densities = [
        np.exp(learned_likelihood.log_likelihood(latents, jnp.full(len(time), k), time))
        for k in (0, 1)
    ]
    width = time[1] - time[0]
    assert abs(width * np.sum(densities) - 1) < 1e-3
    choices, times = learned_likelihood.race(random.key(0), latents, 100_000)
    for k, density in enumerate(densities):
        for limit in (0.6, 0.8, 8.0):
            share = np.mean((np.asarray(choices) == k) & (np.asarray(times) < limit))
            # five standard errors of a share
            assert abs(width * density[time < limit].sum() - share) < 5 * 0.5 / np.sqrt(100_000)


def test_time_series(arguments):
    """6,000 draws of NUTS, whose Monte Carlo errors are checked."""
    result = time_series.main(arguments)
    for chains in result["nuts"].values():
        assert gelman_rubin(chains) < 1.02 and effective_sample_size(chains) > 400
    for name, (mean, sd) in errors(result["amortized"], result["nuts"]).items():
        assert mean < 0.3 and sd < 0.25, name
