# SPDX-License-Identifier: Apache-2.0
"""Models of the tests, and their exact posteriors where there are any."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.contrib.control_flow import scan

EFFECTS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
DESIGN = np.array([[1.0, 0.5], [-1.0, 1.0], [0.0, -2.0], [2.0, 0.0], [0.5, 1.5], [-1.0, -1.0]])
NOISE = 0.5


class Gaussian(NamedTuple):
    """A normal distribution of a vector."""

    mean: np.ndarray
    covariance: np.ndarray


def normal_mean(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def normal_mean_posterior(y):
    """Mean and standard deviation given data of shape ``(*batch, n)``."""
    n = y.shape[-1]
    return y.sum(-1) / (n + 1), (n + 1) ** -0.5


def regression(x, y):
    intercept = numpyro.sample("intercept", dist.Normal(1, 2))
    with numpyro.plate("feature", x.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
    mean = numpyro.deterministic("mean", intercept + x @ slope)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def regression_posterior(y) -> Gaussian:
    """Of intercept and slopes, given data of shape ``(rows,)``."""
    X = np.column_stack([np.ones(len(DESIGN)), DESIGN])
    prior_precision = np.diag([0.25, 1, 1])
    covariance = np.linalg.inv(X.T @ X / NOISE**2 + prior_precision)
    return Gaussian(covariance @ (X.T @ y / NOISE**2 + prior_precision @ [1, 0, 0]), covariance)


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def constrained(y):
    scale = numpyro.sample("scale", dist.HalfNormal(2))
    width = numpyro.sample("width", dist.Uniform(0, scale))
    share = numpyro.sample("share", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    corr = numpyro.sample("corr", dist.LKJCholesky(3, 2.0))
    ordered = dist.TransformedDistribution(
        dist.Normal(0, 1).expand([3]).to_event(1), dist.transforms.OrderedTransform()
    )
    cuts = numpyro.sample("cuts", ordered)
    part = numpyro.sample("part", dist.TruncatedNormal(0.5, 1, low=-1, high=2))
    tail = numpyro.sample("tail", dist.TruncatedNormal(0, 1, low=scale))
    rate = numpyro.sample("rate", dist.Gamma(2, 1))
    mean = width + share[0] + corr[1, 0] + cuts[1] + part + tail
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mean, rate), obs=y)


def bounded_pair(y):
    scale = numpyro.sample("scale", dist.HalfNormal(2))
    width = numpyro.sample("width", dist.Uniform(0, scale))
    numpyro.sample("y", dist.Normal(width, 1), obs=y)


def autoregression(y):
    """A latent AR(1) state, observed with noise."""
    rho = numpyro.sample("rho", dist.Uniform(-1, 1))

    def step(state, observed):
        state = numpyro.sample("state", dist.Normal(rho * state, 1))
        numpyro.sample("y", dist.Normal(state, 1), obs=observed)
        return state, None

    scan(step, jnp.zeros(()), y)


def masked(y, keep):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)), numpyro.handlers.mask(mask=keep):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def outside_support(simulator, latents):
    """How many draws ``(datasets, draws, *shape)`` of each site are outside of its support."""

    @jax.jit
    @jax.vmap
    @jax.vmap
    def inside(values):
        trace = simulator.trace(random.key(0), values)
        return {name: jnp.all(trace[name]["fn"].support(trace[name]["value"])) for name in values}

    return {name: int((~ok).sum()) for name, ok in inside(latents).items()}


def markov(y):
    """An observed AR(1) process."""
    rho = numpyro.sample("rho", dist.Uniform(-1, 1))
    scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.5))

    def step(before, observed):
        return numpyro.sample("y", dist.Normal(rho * before, scale), obs=observed), None

    scan(step, jnp.zeros(()), y)


def blob(place, num_cells):
    """A bump of height one on a square grid, shape ``(num_cells, num_cells)``."""
    along = [jnp.exp(-(((jnp.arange(num_cells) - x) / 1.5) ** 2) / 2) for x in place]
    return along[0][:, None] * along[1]


def picture(y):
    """A bump of unknown place and height, in noise."""
    place = numpyro.sample("place", dist.Normal(3.5, 1.2).expand([2]).to_event(1))
    height = numpyro.sample("height", dist.LogNormal(1.0, 0.3))
    numpyro.sample("y", dist.Normal(height * blob(place, len(y)), NOISE), obs=y)


def three_sites(survey, series, image):
    """A set, a time series and an image, of which all tell of ``mu``."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    rho = numpyro.sample("rho", dist.Uniform(-1, 1))
    place = numpyro.sample("place", dist.Normal(3.5, 1.2))
    with numpyro.plate("members", len(survey)):
        numpyro.sample("survey", dist.Normal(mu, 2), obs=survey)

    def step(before, observed):
        mean = rho * before + 0.3 * mu
        return numpyro.sample("series", dist.Normal(mean, 1), obs=observed), None

    scan(step, jnp.zeros(()), series)
    mean = 2 * jnp.exp(mu / 2) * blob((place, (len(image) - 1) / 2), len(image))
    numpyro.sample("image", dist.Normal(mean, 1).to_event(2), obs=image)


def group_means(y, batch_size=None):
    """Groups with means of their own, the second axis of members; some of them in each step."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("group", y.shape[0], batch_size, dim=-2):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        with numpyro.plate("member", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(theta, 1), obs=numpyro.subsample(y, event_dim=0))


def group_means_posterior(y):
    """Means and standard deviations of all latents, by an integral over ``tau``."""
    num_groups, n = y.shape
    averages = np.asarray(y, np.float64).mean(1)
    tau = np.linspace(5e-5, 5, 50_001)
    spread = tau**2 + 1 / n  # variance of an average given mu
    precision = 1 + num_groups / spread  # of mu given tau and the data
    center = averages.sum() / spread / precision
    log_p = (
        -0.5 * num_groups * np.log(spread)
        - 0.5 * np.log(precision)
        - 0.5 * ((averages**2).sum() / spread - precision * center**2)
        - 0.5 * tau**2
    )
    p = np.exp(log_p - log_p.max())
    kept = p > 1e-10
    p, tau, spread, precision, center = (x[kept] for x in (p, tau, spread, precision, center))
    share = tau**2 / spread  # of the group's own average in the mean of theta
    mean = center * (1 - share) + np.outer(averages, share)
    variance = share / n + (1 - share) ** 2 / precision

    def moments(means, variances):
        weights = p / p.sum()
        mean = means @ weights
        return mean, np.sqrt((variances + means**2) @ weights - mean**2)

    return {
        "mu": moments(center, 1 / precision),
        "tau": moments(tau, np.zeros_like(tau)),
        "theta": moments(mean, variance),
    }


def schools_of(num_schools, sigma, y=None):
    """Eight schools, or another number of them."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", num_schools):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
