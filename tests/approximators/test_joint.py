# SPDX-License-Identifier: Apache-2.0
"""The model's joint density, with discrete latents summed out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.infer.util import log_density
from scipy import stats

import numpyro_amortized as npa
from numpyro_amortized.approximators.joint import JointDensity
from tests import models

Y = np.linspace(-2, 3, 14).astype(np.float32)


def joint_of(model, *args, inferred, **kwargs):
    return JointDensity(npa.ModelSimulator(model, *args, **kwargs), inferred)


@pytest.mark.verify
def test_as_numpyro():
    simulator = npa.ModelSimulator(models.constrained, np.zeros(4))
    draw = jax.jit(simulator.simulate)(random.key(0))
    latents = {name: x for name, x in draw.items() if name != "y"}
    exact = jax.jit(lambda y, latents: log_density(models.constrained, (y,), {}, latents)[0])
    joint = jax.jit(JointDensity(simulator, tuple(latents)))
    found = joint(latents, {"y": draw["y"]})
    np.testing.assert_allclose(found, exact(draw["y"], latents), rtol=1e-4)


def test_masked_data_do_not_count():
    keep = np.array([True, False, True])
    joint = joint_of(models.masked, np.zeros(3), keep, inferred=("mu",))
    y = np.array([0.3, 100.0, -1.0], np.float32)
    expected = stats.norm.logpdf(0.5) + stats.norm.logpdf(y[keep] - 0.5).sum()
    np.testing.assert_allclose(joint({"mu": 0.5}, {"y": y}), expected, rtol=1e-5)


def mixture(y, coupled=False):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    swap = numpyro.sample("swap", dist.Bernoulli(0.3))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        shift = jnp.sum(z) if coupled else z
        numpyro.sample("y", dist.Normal(mu + 2 * shift - swap, 1), obs=y)


def mixture_log_density(mu, y):
    each = [
        np.log(
            np.exp(stats.norm.logpdf(y, mu - swap + 2 * np.arange(3)[:, None])).T @ [0.2, 0.5, 0.3]
        )
        for swap in (0, 1)
    ]
    return stats.norm.logpdf(mu) + np.logaddexp(
        np.log(0.7) + each[0].sum(), np.log(0.3) + each[1].sum()
    )


# all 486 combinations at once, and member by member
@pytest.mark.parametrize("n", [4, pytest.param(14, marks=pytest.mark.verify)])
def test_discrete_latents_are_summed_out(n):
    joint = joint_of(mixture, Y[:n], inferred=("mu",))
    for mu in (-1.0, 0.4):
        expected = mixture_log_density(mu, Y[:n].astype(float))
        np.testing.assert_allclose(joint({"mu": mu}, {"y": Y[:n]}), expected, rtol=1e-4)


def test_members_that_depend_on_each_other():
    with pytest.raises(ValueError, match=r"'z'.*depend on each other"):
        joint_of(mixture, Y, coupled=True, inferred=("mu",))
    # few combinations need no independence
    joint = joint_of(mixture, Y[:4], coupled=True, inferred=("mu",))
    assert np.isfinite(joint({"mu": 0.0}, {"y": Y[:4]}))


def counts(y):
    rate = numpyro.sample("rate", dist.Gamma(2, 1))
    n = numpyro.sample("count", dist.Poisson(rate))
    numpyro.sample("y", dist.Normal(n, 1), obs=y)


def implicit(x=None):
    theta = numpyro.sample("theta", dist.Normal(0, 1))
    noise = numpyro.sample("noise", dist.Normal(0, 1))
    numpyro.deterministic("x", theta + noise)


def test_refusals():
    with pytest.raises(ValueError, match=r"'count'.*no finite support"):
        joint_of(counts, 0.0, inferred=("rate",))
    with pytest.raises(ValueError, match=r"'x' is observed, but computed"):
        joint_of(implicit, observed=("x",), inferred=("theta", "noise"))
    with pytest.raises(ValueError, match=r"\['theta'\] are latent, but not inferred"):
        joint_of(models.eight_schools, models.SIGMA, models.EFFECTS, inferred=("mu", "tau"))
    with pytest.raises(ValueError, match=r"'state'"):
        joint_of(models.autoregression, np.zeros(3), inferred=("rho",))
