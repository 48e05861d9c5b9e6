# SPDX-License-Identifier: Apache-2.0
"""Keys of the sites of a model."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp
from jax import random
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import numpyro_amortized as npa
from numpyro_amortized.simulators.seeding import seeded


def keyed():
    a = numpyro.sample("a", dist.Normal(0, 1))
    with numpyro.plate("n", 3):
        b = numpyro.sample("b", dist.Normal(0, 1))
    numpyro.sample("given", dist.Normal(0, 1), obs=jnp.zeros(()))
    c = scan(lambda carry, x: (carry, numpyro.sample("c", dist.Normal(0, 1))), None, jnp.arange(2))
    return a, b, c[1], random.normal(numpyro.prng_key())


def test_all_draws_differ():
    draws = jax.jit(lambda key: seeded(keyed, key)())(random.key(0))
    flat = np.concatenate([np.ravel(x) for x in draws])
    assert len(np.unique(flat)) == len(flat) == 7


def test_a_seed_inside_comes_first():
    def model():
        return handlers.seed(lambda: numpyro.sample("a", dist.Normal(0, 1)), random.key(7))()

    np.testing.assert_array_equal(seeded(model, random.key(0))(), model())


def test_context_and_sites_are_independent():
    def model(x, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu * x, 1), obs=y)

    simulator = npa.ModelSimulator(
        model, observed=["y"], context=lambda key: {"x": random.normal(key)}
    )
    num = 4000
    draws = simulator.sample(random.key(0), num)
    traced = jax.jit(jax.vmap(lambda key: _values(simulator.trace(key), draws)))(
        random.split(random.key(1), num)
    )
    for sample in (draws, traced):
        noise = sample["y"] - sample["mu"] * sample["x"]
        # four standard errors of correlations that are zero
        correlations = np.corrcoef([sample["x"], sample["mu"], noise]) - np.eye(3)
        assert np.abs(correlations).max() < 4 / num**0.5


def _values(trace, names):
    context = trace["y"]["fn"].loc / trace["mu"]["value"]
    return {n: trace[n]["value"] for n in names if n in trace} | {"x": context}
