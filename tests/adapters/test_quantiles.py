# SPDX-License-Identifier: Apache-2.0
"""Maps between distributions and the standard normal."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_amortized.adapters import quantiles
from numpyro_amortized.adapters.quantiles import _NORMAL, _TAILS, has_quantiles

to_normal, from_normal = jax.jit(quantiles.to_normal), jax.jit(quantiles.from_normal)

FAMILIES = [
    (dist.Normal(2.0, 3.0), stats.norm(2, 3)),
    (dist.LogNormal(0.5, 0.8), stats.lognorm(0.8, scale=np.exp(0.5))),
    (dist.Uniform(-1.0, 3.0), stats.uniform(-1, 4)),
    (dist.Exponential(2.0), stats.expon(scale=0.5)),
    (dist.HalfNormal(3.0), stats.halfnorm(scale=3)),
    (dist.HalfCauchy(5.0), stats.halfcauchy(scale=5)),
    (dist.Cauchy(0.0, 2.0), stats.cauchy(0, 2)),
    (dist.Laplace(0.0, 2.0), stats.laplace(0, 2)),
    (dist.Logistic(0.0, 2.0), stats.logistic(0, 2)),
]
# Values are compared for all; of the laws, those of a bounded, a heavy-tailed and an exact map.
FEW = {dist.Uniform, dist.HalfCauchy, dist.LogNormal}
EVERY = pytest.mark.parametrize("ours, reference", FAMILIES, ids=lambda d: type(d).__name__)
LAWS = pytest.mark.parametrize(
    "ours, reference",
    [
        pair if type(pair[0]) in FEW else pytest.param(*pair, marks=pytest.mark.verify)
        for pair in FAMILIES
    ],
    ids=lambda d: type(d).__name__,
)


def test_every_family_is_tested():
    tested = {type(ours) for ours, _ in FAMILIES}
    assert tested | {dist.GaussianRandomWalk} == {*_TAILS, *_NORMAL}
    assert all(has_quantiles(ours) for ours, _ in FAMILIES)
    assert not has_quantiles(dist.Gamma(2.0, 1.0))
    # a subclass or a wrapper may have another density
    assert not has_quantiles(dist.TruncatedNormal(0.0, 1.0, low=0.0))


@EVERY
def test_values_are_those_of_scipy_in_both_tails(ours, reference):
    z = np.linspace(-6, 6, 49)  # probabilities down to 1e-9
    expected = np.where(z < 0, reference.ppf(stats.norm.cdf(z)), reference.isf(stats.norm.sf(z)))
    x = from_normal(ours, jnp.asarray(z, jnp.float32))
    scale = reference.isf(0.25) - reference.median()  # where x passes through zero
    np.testing.assert_allclose(x, expected, rtol=2e-4, atol=2e-5 * scale)


@LAWS
def test_round_trip_of_normal_values(ours, reference):
    z = jnp.linspace(-4.5, 4.5, 181)
    x = from_normal(ours, z)
    back, _ = to_normal(ours, x)
    # x is rounded to 6e-8 |x|: near a bound other than zero nothing can bring z back
    slope = jax.vmap(jax.grad(lambda z: from_normal(ours, z)))(z)
    resolution = 1.2e-7 * jnp.maximum(jnp.abs(x), 1) / slope
    assert (jnp.abs(back - z) <= 1e-4 * (1 + jnp.abs(z)) + 4 * resolution).all()


@LAWS
def test_round_trip_of_own_values(ours, reference):
    x = jnp.asarray(reference.ppf(np.linspace(1e-4, 1 - 1e-4, 201)), jnp.float32)
    again = from_normal(ours, to_normal(ours, x)[0])
    np.testing.assert_allclose(again, x, rtol=1e-4, atol=1e-4)


@LAWS
def test_log_slope_is_that_of_autodiff(ours, reference):
    with jax.enable_x64(True):
        ours = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), ours)
        x = jnp.asarray(reference.ppf(np.linspace(0.003, 0.997, 101)))
        slope = jax.vmap(jax.grad(lambda x: to_normal(ours, x)[0]))(x)
        np.testing.assert_allclose(to_normal(ours, x)[1], jnp.log(slope), rtol=1e-6, atol=1e-6)


@pytest.mark.verify
@EVERY
def test_float64_round_trip(ours, reference):
    with jax.enable_x64(True):
        ours = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), ours)
        x = jnp.asarray(reference.ppf(np.linspace(1e-4, 1 - 1e-4, 201)))
        error = jnp.abs(from_normal(ours, to_normal(ours, x)[0]) - x)
        assert (error <= 1e-10 * (1 + jnp.abs(x))).all()


@LAWS
def test_in_the_support_for_every_value(ours, reference):
    z = jnp.concatenate([jnp.linspace(-40, 40, 801), jnp.array([-1e4, 1e4])])
    if isinstance(ours, dist.LogNormal):
        z = z[jnp.abs(z) < 100]  # exp overflows, as its own sampler does
    x = from_normal(ours, z)
    assert jnp.isfinite(x).all() and bool(ours.support(x).all())


@LAWS
def test_densities_and_gradients_are_finite(ours, reference):
    z = jnp.linspace(-8, 8, 129)  # zero is among them
    x, slope = jax.vmap(jax.value_and_grad(lambda z: from_normal(ours, z)))(z)
    assert jnp.isfinite(slope).all() and (slope > 0).all()
    back, log_slope = to_normal(ours, x)
    assert jnp.isfinite(back).all() and jnp.isfinite(log_slope).all()


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_a_uniform_draw_on_its_bound_stays_finite(x):
    z, log_slope = to_normal(dist.Uniform(0.0, 1.0), jnp.asarray(x))
    assert jnp.isfinite(z) and jnp.isfinite(log_slope) and jnp.abs(z) > 5


def test_random_walks_are_mapped_step_by_step():
    walks = dist.GaussianRandomWalk(jnp.array([0.5, 2.0]), 3)
    z = jnp.linspace(-4, 4, 24).reshape(4, 2, 3)
    x = from_normal(walks, z)
    np.testing.assert_allclose(x[..., 1] - x[..., 0], walks.scale * z[..., 1], rtol=1e-5)
    steps, log_slope = to_normal(walks, x)
    np.testing.assert_allclose(steps, z, rtol=1e-4, atol=1e-5)
    expected = dist.Normal().log_prob(z).sum(-1) + log_slope.sum(-1)
    np.testing.assert_allclose(walks.log_prob(x), expected, rtol=1e-5)
