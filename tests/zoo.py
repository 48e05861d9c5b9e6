# SPDX-License-Identifier: Apache-2.0
"""Models after the examples of NumPyro, from their published definitions, with small data sets."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from tests.models import EFFECTS, SIGMA, eight_schools


class Example(NamedTuple):
    """A model and what it is given for MCMC."""

    model: Callable[..., None]
    args: tuple[Any, ...]


# Efron & Morris (1975): hits of 18 players in their first 45 times at bat.
AT_BATS = np.full(18, 45)
HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])


def fully_pooled(at_bats, hits=None):
    phi = numpyro.sample("phi", dist.Uniform(0, 1))
    with numpyro.plate("players", len(at_bats)):
        numpyro.sample("hits", dist.Binomial(at_bats, phi), obs=hits)


def not_pooled(at_bats, hits=None):
    with numpyro.plate("players", len(at_bats)):
        phi = numpyro.sample("phi", dist.Uniform(0, 1))
        numpyro.sample("hits", dist.Binomial(at_bats, phi), obs=hits)


def partially_pooled(at_bats, hits=None):
    m = numpyro.sample("m", dist.Uniform(0, 1))
    kappa = numpyro.sample("kappa", dist.Pareto(1, 1.5))
    with numpyro.plate("players", len(at_bats)):
        phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        numpyro.sample("hits", dist.Binomial(at_bats, phi), obs=hits)


def partially_pooled_with_logit(at_bats, hits=None):
    loc = numpyro.sample("loc", dist.Normal(-1, 1))
    scale = numpyro.sample("scale", dist.HalfCauchy(1))
    with numpyro.plate("players", len(at_bats)):
        alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
        numpyro.sample("hits", dist.Binomial(at_bats, logits=alpha), obs=hits)


# Standard & Poor's 500 from 2007-07-20 to 2007-08-16: daily returns in per cent.
RETURNS = [-1.2221, 0.4869, -1.9804, 0.4666, -2.3338, -1.5992, 1.0254, -1.2647, 0.7243, 0.4359]
RETURNS += [-2.6586, 2.4151, 0.6159, 1.4072, -2.9650, 0.0379, -0.0495, -1.8157, -1.3908, 0.3249]
RETURNS = np.array(RETURNS)


def stochastic_volatility(returns):
    """Hoffman & Gelman (2014), section 4.2."""
    step_size = numpyro.sample("step_size", dist.Exponential(50.0))
    s = numpyro.sample("s", dist.GaussianRandomWalk(step_size, num_steps=len(returns)))
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    numpyro.sample("r", dist.StudentT(nu, 0.0, jnp.exp(s)), obs=returns)


# Bickel, Hammel & O'Connell (1975): admissions at Berkeley, six departments, men and women.
DEPARTMENT = np.repeat(np.arange(6), 2)
MALE = np.tile([1, 0], 6)
APPLICATIONS = np.array([825, 108, 560, 25, 325, 593, 417, 375, 191, 393, 373, 341])
ADMITTED = np.array([512, 89, 353, 17, 120, 202, 138, 131, 53, 94, 22, 24])


def ucbadmit(department, male, applications, admitted=None):
    """Varying intercepts and slopes with a correlation (McElreath, 2016, chapter 13)."""
    mean = numpyro.sample("mean", dist.Normal(0, jnp.array([4.0, 1.0])))
    sigma = numpyro.sample("sigma", dist.HalfNormal(jnp.ones(2)))
    correlation = numpyro.sample("correlation", dist.LKJCholesky(2, concentration=2))
    scale_tril = sigma[:, None] * correlation
    with numpyro.plate("departments", 6):
        effects = numpyro.sample("effects", dist.MultivariateNormal(mean, scale_tril=scale_tril))
    logits = effects[department, 0] + effects[department, 1] * male
    with numpyro.plate("rows", len(applications)):
        numpyro.sample("admitted", dist.Binomial(applications, logits=logits), obs=admitted)


# Hudson's Bay Company, 1900 to 1920: pelts of hares and lynxes, in thousands.
HARES = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1]
HARES += [40.3, 57, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]
LYNXES = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4]
LYNXES += [8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
PELTS = np.stack([HARES, LYNXES], axis=1)


def log_populations(initial, theta, years, *, steps=20):
    """Lotka-Volterra equations by Runge and Kutta's method, logarithms of shape (years, 2)."""

    def slope(state):
        hares, lynxes = jnp.exp(state)
        return jnp.stack([theta[0] - theta[1] * lynxes, theta[3] * hares - theta[2]])

    def advance(state, _):
        first = slope(state)
        second = slope(state + first / (2 * steps))
        third = slope(state + second / (2 * steps))
        fourth = slope(state + third / steps)
        return state + (first + 2 * second + 2 * third + fourth) / (6 * steps), None

    def year(state, _):
        return lax.scan(advance, state, length=steps)[0], state

    return lax.scan(year, initial, length=years)[1]


def lynx_hare(pelts):
    """Carpenter (2018), *Predator-prey population dynamics*, Stan case studies."""
    initial = numpyro.sample("initial", dist.LogNormal(jnp.log(10), 1).expand([2]))
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(loc, scale, low=0.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]))
    z = log_populations(jnp.log(initial), theta, len(pelts))
    numpyro.sample("pelts", dist.LogNormal(z, sigma), obs=pelts)


INPUTS = np.linspace(-1, 1, 12)
OUTPUTS = np.sin(3 * INPUTS) + 0.1 * np.cos(40 * INPUTS)


def gaussian_process(x, y):
    """Latent function integrated out; Rasmussen & Williams (2006), eq. 2.30."""
    variance = numpyro.sample("variance", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    distance = (x[:, None] - x) / length
    covariance = variance * jnp.exp(-0.5 * distance**2) + (noise + 1e-4) * jnp.eye(len(x))
    mvn = dist.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=covariance)
    numpyro.sample("y", mvn, obs=y)


class HiddenMarkov(dist.Distribution):
    """Words emitted by a hidden Markov chain that starts anywhere; the states are integrated out.

    :param transition: shape ``(states, states)``, rows sum to one.
    :param emission: shape ``(states, words)``, rows sum to one.
    :param length: number of words.
    """

    arg_constraints: ClassVar = {
        "transition": constraints.independent(constraints.simplex, 1),
        "emission": constraints.independent(constraints.simplex, 1),
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, transition, emission, length, *, validate_args=None):
        self.transition, self.emission, self.length = transition, emission, length
        super().__init__((), (length,), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        def step(state, key):
            emit_key, move_key = random.split(key)
            word = random.categorical(emit_key, jnp.log(self.emission)[state])
            return random.categorical(move_key, jnp.log(self.transition)[state]), word

        start_key, *keys = random.split(key, 1 + self.length)
        start = random.randint(start_key, sample_shape, 0, len(self.transition))
        words = lax.scan(step, start, jnp.stack(keys))[1]
        return jnp.moveaxis(words, 0, -1)

    @validate_sample
    def log_prob(self, value):
        def forward(log_alpha, word):
            log_alpha = log_alpha + jnp.log(self.emission)[:, word]
            return jax.nn.logsumexp(log_alpha[:, None] + jnp.log(self.transition), axis=0), None

        start = jnp.full(len(self.transition), -jnp.log(len(self.transition)))
        return jax.nn.logsumexp(lax.scan(forward, start, value)[0])


WORDS = np.array([0, 3, 3, 1, 0, 2, 2, 3, 3, 1, 0, 0, 2, 1, 3])


def hidden_markov(words, num_states=3, num_words=4):
    """Stan user's guide, section 2.6, unsupervised."""
    with numpyro.plate("states", num_states):
        transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones(num_states)))
        emission = numpyro.sample("emission", dist.Dirichlet(jnp.ones(num_words)))
    numpyro.sample("words", HiddenMarkov(transition, emission, len(words)), obs=words)


FEATURES = np.random.default_rng(1).standard_normal((10, 4))
RESPONSE = FEATURES @ [1.0, 0.0, 0.0, -2.0]


def horseshoe(x, y):
    """Carvalho, Polson & Scott (2010)."""
    local = numpyro.sample("local", dist.HalfCauchy(jnp.ones(x.shape[1])))
    overall = numpyro.sample("overall", dist.HalfCauchy(1.0))
    unscaled = numpyro.sample("unscaled", dist.Normal(0, jnp.ones(x.shape[1])))
    beta = numpyro.deterministic("beta", overall * local * unscaled)
    precision = numpyro.sample("precision", dist.Gamma(3.0, 1.0))
    numpyro.sample("y", dist.Normal(x @ beta, precision**-0.5), obs=y)


# Leroux & Puterman (1992): movements of a fetal lamb in 240 intervals of five seconds.
MOVEMENTS = np.repeat([0, 1, 2, 3, 4, 7], [182, 41, 12, 2, 2, 1])
INTERCEPT = np.ones((240, 1))


def zero_inflated_poisson(x, counts):
    """Lambert (1992): covariates of the zeros and of the rate."""
    to_gate = numpyro.sample("to_gate", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    to_rate = numpyro.sample("to_rate", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    gate, rate = jax.nn.sigmoid(x @ to_gate), jnp.exp(x @ to_rate)
    with numpyro.plate("intervals", len(x)):
        numpyro.sample("counts", dist.ZeroInflatedPoisson(gate, rate), obs=counts)


CHOSEN = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 0])


def proportion_test(design, chosen):
    """Logistic regression of a choice on the groups that are compared."""
    beta = numpyro.sample("beta", dist.Normal(0, jnp.ones(design.shape[1])).to_event(1))
    numpyro.deterministic("probabilities", jax.nn.sigmoid(design @ beta))
    numpyro.sample("chosen", dist.Bernoulli(logits=design @ beta), obs=chosen)


def hilbert_space_gp(x, y, num_functions=5, boundary=1.5):
    """Squared exponential kernel in sines; Riutort-Mayol et al. (2023), eqs. 8 and 9."""
    alpha = numpyro.sample("alpha", dist.HalfNormal(1.0))
    length = numpyro.sample("length", dist.InverseGamma(5.0, 2.0))
    noise = numpyro.sample("noise", dist.HalfNormal(0.5))
    roots = jnp.arange(1, num_functions + 1) * jnp.pi / (2 * boundary)
    sines = jnp.sin(roots * (x[:, None] + boundary)) / jnp.sqrt(boundary)
    spectrum = alpha**2 * length * jnp.sqrt(2 * jnp.pi) * jnp.exp(-0.5 * (length * roots) ** 2)
    with numpyro.plate("basis", num_functions):
        beta = numpyro.sample("beta", dist.Normal(0, 1))
    f = numpyro.deterministic("f", sines @ (jnp.sqrt(spectrum) * beta))
    with numpyro.plate("points", len(x)):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


ZOO = {
    example.model.__name__: example
    for example in (
        Example(eight_schools, (SIGMA, EFFECTS)),
        Example(fully_pooled, (AT_BATS, HITS)),
        Example(not_pooled, (AT_BATS, HITS)),
        Example(partially_pooled, (AT_BATS, HITS)),
        Example(partially_pooled_with_logit, (AT_BATS, HITS)),
        Example(stochastic_volatility, (RETURNS,)),
        Example(ucbadmit, (DEPARTMENT, MALE, APPLICATIONS, ADMITTED)),
        Example(lynx_hare, (PELTS,)),
        Example(gaussian_process, (INPUTS, OUTPUTS)),
        Example(hidden_markov, (WORDS,)),
        Example(horseshoe, (FEATURES, RESPONSE)),
        Example(zero_inflated_poisson, (INTERCEPT, MOVEMENTS)),
        Example(proportion_test, (FEATURES, CHOSEN)),
        Example(hilbert_space_gp, (INPUTS, OUTPUTS)),
    )
}


CAPTURES = jnp.asarray(np.random.default_rng(2).binomial(1, 0.3, (4, 20)))


def holt_winters(y, num_seasons=4):
    """Exponential smoothing: the level follows the data."""
    smoothing = numpyro.sample("smoothing", dist.Beta(1, 1))
    noise = numpyro.sample("noise", dist.HalfNormal(1))
    with numpyro.plate("seasons", num_seasons):
        seasons = numpyro.sample("seasonality", dist.Normal(0, 1))

    def step(level, t):
        numpyro.sample("y", dist.Normal(level + seasons[t % num_seasons], noise))
        return smoothing * y[t] + (1 - smoothing) * level, None

    with handlers.condition(data={"y": y}):
        scan(step, y[0], jnp.arange(len(y)))


def capture_recapture(history):
    """Cormack, Jolly & Seber: animals count from their first capture, known from the data."""
    survival = numpyro.sample("survival", dist.Uniform(0.0, 1.0))
    recapture = numpyro.sample("recapture", dist.Uniform(0.0, 1.0))
    is_known = jnp.cumsum(history, axis=0) > 0
    alive = jnp.ones(history.shape[1])
    with numpyro.plate("animals", history.shape[1]):
        for t in range(1, len(history)):
            alive = numpyro.sample(f"alive_{t}", dist.Bernoulli(alive * survival))
            alive = jnp.where(is_known[t - 1], alive, 1.0)
            seen = dist.Bernoulli(alive * recapture * is_known[t - 1])
            numpyro.sample(f"seen_{t}", seen, obs=history[t])


def second_order_autoregression(y):
    """AR(2) that starts from the first two data."""
    coefficients = numpyro.sample("coefficients", dist.Normal(0, 1).expand([2]).to_event(1))

    def step(carry, _):
        y = numpyro.sample("y", dist.Normal(coefficients @ jnp.stack(carry), 1))
        return (y, carry[0]), None

    with handlers.condition(data={"y": y[2:]}):
        scan(step, (y[1], y[0]), None, length=len(y) - 2)


DATA_AS_COVARIATES = {
    example.model.__name__: example
    for example in (
        Example(holt_winters, (jnp.asarray(RETURNS),)),
        Example(capture_recapture, (CAPTURES,)),
        Example(second_order_autoregression, (jnp.asarray(RETURNS),)),
    )
}
