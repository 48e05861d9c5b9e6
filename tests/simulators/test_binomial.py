# SPDX-License-Identifier: Apache-2.0
"""Binomial draws have their distribution, and vectorized loops of draws end."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.distributions import discrete
from scipy import stats

import numpyro_amortized as npa
from numpyro_amortized.simulators.binomial import binomial

NUM_DRAWS = 40_000


@pytest.mark.parametrize("n, p", [(45, 0.3), (45, 0.9), (12, 0.1), (200, 0.5), (1, 0.7)])
def test_draws_have_their_probabilities(n, p):
    draws = np.asarray(binomial(random.key(n), p, n, (NUM_DRAWS,)))
    assert draws.dtype == np.int32
    shares = np.bincount(draws, minlength=n + 1) / NUM_DRAWS
    expected = stats.binom(n, p).pmf(np.arange(n + 1))
    # five standard errors of each share, and one draw where there may be none
    error = np.sqrt(expected * (1 - expected) / NUM_DRAWS) + 1 / NUM_DRAWS
    assert (np.abs(shares - expected) < 5 * error).all()


def test_ends_of_the_range():
    p, n = jnp.array([0.0, 1.0, jnp.nan, 0.5, 0.5]), jnp.array([7, 7, 7, 0, -1])
    np.testing.assert_array_equal(binomial(random.key(0), p, n), [0, 7, 0, 0, 0])


def throws(y):
    p = numpyro.sample("p", dist.Uniform(0, 1))
    with numpyro.plate("n", 18):
        numpyro.sample("y", dist.Binomial(45, probs=p), obs=y)


def conditions(program):
    """Those of all loops, however deep."""
    for equation in program.eqns:
        if equation.primitive.name == "while":
            yield equation.params["cond_jaxpr"].jaxpr
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(each, "jaxpr", each)
                if hasattr(inner, "eqns"):
                    yield from conditions(inner)


def test_conditions_of_loops_round_nothing():
    """They compare what the loops carry: all evaluations agree, also of a vectorized loop."""
    found = list(
        conditions(jax.make_jaxpr(lambda key: binomial(key, 0.3, 45))(random.key(0)).jaxpr)
    )
    assert len(found) == 2
    used = {equation.primitive.name for each in found for equation in each.eqns}
    assert used <= {"le", "lt", "not", "or", "and", "reduce_or", "convert_element_type"}


def test_simulations_draw_by_it():
    before = discrete.binomial
    simulator = npa.ModelSimulator(throws, np.zeros(18, int))
    draws = simulator.sample(random.key(0), 4000)
    assert discrete.binomial is before
    # uniform probabilities make every number of successes equally probable
    counts = np.bincount(np.asarray(draws["y"])[:, 0], minlength=46)
    assert stats.chisquare(counts).pvalue > 1e-3
