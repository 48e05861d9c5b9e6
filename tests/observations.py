# SPDX-License-Identifier: Apache-2.0
"""Models of observations whose likelihood is known, and NUTS on a model."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import MCMC, NUTS

import numpyro_amortized as npa

NUM_OBSERVATIONS = 20


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def poisson(x, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0.5, 0.5))
    slope = numpyro.sample("slope", dist.Normal(0, 0.5))
    with numpyro.plate("n", len(x)):
        numpyro.sample("y", dist.Poisson(jnp.exp(intercept + slope * x)), obs=y)


def race(choice, time):
    """Two exponential racers after a latency: a choice, and a time that depends on it."""
    drift = numpyro.sample("drift", dist.Normal(0, 1))
    speed = numpyro.sample("speed", dist.Normal(0, 0.5))
    with numpyro.plate("n", len(choice)):
        choice = numpyro.sample("choice", dist.Bernoulli(logits=drift), obs=choice)
        location = speed - 0.3 * jnp.abs(drift) + 0.2 * choice
        numpyro.sample("time", dist.LogNormal(location, 0.5), obs=time)


def covariates(rng_key):
    return {"x": random.normal(rng_key, (NUM_OBSERVATIONS,))}


ZEROS = np.zeros(NUM_OBSERVATIONS)
SIMULATORS = {
    "normal": lambda: npa.ModelSimulator(normal, ZEROS),
    "poisson": lambda: npa.ModelSimulator(poisson, observed=("y",), context=covariates),
    "race": lambda: npa.ModelSimulator(race, ZEROS.astype(int), ZEROS + 1),
}


def nuts(model, *args, num_samples=1000, num_warmup=500, num_chains=4, seed=1, **kwargs):
    """Draws of vectorized chains."""
    mcmc = MCMC(
        NUTS(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(random.key(seed), *args, **kwargs)
    return {name: np.asarray(x) for name, x in mcmc.get_samples().items()}


def learned_normal(approximator, y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", approximator.likelihood({"mu": mu}), obs=y)


def ratio_normal(approximator, y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    if numpyro.get_mask() is not False:
        numpyro.factor("ratio", approximator.log_ratio({"mu": mu, "y": y}))


def ratio_poisson(approximator, x, y):
    latents = {
        "intercept": numpyro.sample("intercept", dist.Normal(0.5, 0.5)),
        "slope": numpyro.sample("slope", dist.Normal(0, 0.5)),
    }
    if numpyro.get_mask() is not False:
        numpyro.factor("ratio", approximator.log_ratio(latents | {"x": x, "y": y}))


def ratio_race(approximator, choice, time):
    latents = {
        "drift": numpyro.sample("drift", dist.Normal(0, 1)),
        "speed": numpyro.sample("speed", dist.Normal(0, 0.5)),
    }
    if numpyro.get_mask() is not False:
        data = {"choice": choice, "time": time}
        numpyro.factor("ratio", approximator.log_ratio(latents | data))


def learned_poisson(approximator, x, y):
    intercept = numpyro.sample("intercept", dist.Normal(0.5, 0.5))
    slope = numpyro.sample("slope", dist.Normal(0, 0.5))
    with numpyro.plate("n", len(y)):
        values = {"intercept": intercept, "slope": slope, "x": x}
        numpyro.sample("y", approximator.likelihood(values), obs=y)


def learned_race(approximator, choice, time):
    latents = {
        "drift": numpyro.sample("drift", dist.Normal(0, 1)),
        "speed": numpyro.sample("speed", dist.Normal(0, 0.5)),
    }
    with numpyro.plate("n", len(choice)):
        choice = numpyro.sample("choice", approximator.likelihood(latents), obs=choice)
        following = approximator.likelihood(latents | {"choice": choice})
        numpyro.sample("time", following, obs=time)
