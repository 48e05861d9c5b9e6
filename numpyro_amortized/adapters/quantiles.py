# SPDX-License-Identifier: Apache-2.0
"""Maps between a distribution and the standard normal, by their quantiles.

``z = Phi^-1(F(x))`` turns a prior into N(0, 1) exactly. Both tails are computed from their own
small probability: ``1 - F`` would lose the upper one to rounding. A random walk is mapped by the
quantiles of each step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import erfc, ndtr, ndtri
from numpyro.distributions import Distribution

# A float32 uniform draw equals its bound once in 2**23 and must not become infinite; on the way
# back, a positive value must not become zero.
_SMALLEST = 1e-30


class Tails(NamedTuple):
    """Lower and upper tail probabilities of a distribution, and their inverses."""

    cdf: Callable[[Distribution, Array], Array]
    sf: Callable[[Distribution, Array], Array]
    icdf: Callable[[Distribution, Array], Array]
    isf: Callable[[Distribution, Array], Array]


def _symmetric(sf: Callable, isf: Callable) -> Tails:
    """Tails of a location-scale family that is symmetric about its location."""

    def standard(d: Distribution, x: Array) -> Array:
        return (x - d.loc) / d.scale

    return Tails(
        cdf=lambda d, x: sf(-standard(d, x)),
        sf=lambda d, x: sf(standard(d, x)),
        icdf=lambda d, p: d.loc - d.scale * isf(p),
        isf=lambda d, p: d.loc + d.scale * isf(p),
    )


def _cauchy_sf(x: Array) -> Array:
    return jnp.arctan2(jnp.ones_like(x), x) / jnp.pi


def _laplace_sf(x: Array) -> Array:
    return jnp.where(x > 0, 0.5 * jnp.exp(-jnp.abs(x)), 1 - 0.5 * jnp.exp(-jnp.abs(x)))


_TAILS: dict[type, Tails] = {
    dist.Uniform: Tails(
        cdf=lambda d, x: (x - d.low) / (d.high - d.low),
        sf=lambda d, x: (d.high - x) / (d.high - d.low),
        icdf=lambda d, p: jnp.clip(d.low + (d.high - d.low) * p, d.low, d.high),
        isf=lambda d, p: jnp.clip(d.high - (d.high - d.low) * p, d.low, d.high),
    ),
    dist.Exponential: Tails(
        cdf=lambda d, x: -jnp.expm1(-d.rate * x),
        sf=lambda d, x: jnp.exp(-d.rate * x),
        icdf=lambda d, p: -jnp.log1p(-p) / d.rate,
        isf=lambda d, p: -jnp.log(p) / d.rate,
    ),
    dist.HalfNormal: Tails(
        cdf=lambda d, x: jax.scipy.special.erf(x / d.scale * jnp.sqrt(0.5)),
        sf=lambda d, x: erfc(x / d.scale * jnp.sqrt(0.5)),
        icdf=lambda d, p: d.scale * jax.scipy.special.erfinv(p) * jnp.sqrt(2.0),
        isf=lambda d, p: -d.scale * ndtri(p / 2),
    ),
    dist.HalfCauchy: Tails(
        cdf=lambda d, x: jnp.arctan2(x, d.scale * jnp.ones_like(x)) * 2 / jnp.pi,
        sf=lambda d, x: jnp.arctan2(d.scale * jnp.ones_like(x), x) * 2 / jnp.pi,
        icdf=lambda d, p: d.scale * jnp.tan(p * jnp.pi / 2),
        isf=lambda d, p: d.scale / jnp.tan(p * jnp.pi / 2),
    ),
    dist.Cauchy: _symmetric(_cauchy_sf, lambda p: 1 / jnp.tan(jnp.pi * p)),
    dist.Laplace: _symmetric(_laplace_sf, lambda p: -jnp.log(2 * p)),
    dist.Logistic: _symmetric(lambda x: jax.nn.sigmoid(-x), lambda p: jnp.log1p(-p) - jnp.log(p)),
}


class NormalMap(NamedTuple):
    """Maps of a distribution whose values are a function of standard normal ones."""

    forward: Callable[[Distribution, Array], Array]
    log_slope: Callable[[Distribution, Array], Array]  # of `forward`; broadcasts against values
    inverse: Callable[[Distribution, Array], Array]


def _step(walk: Distribution) -> Array:
    """Standard deviation of each step, with the axis of the steps."""
    return jnp.asarray(walk.scale)[..., None]


_NORMAL: dict[type, NormalMap] = {
    dist.Normal: NormalMap(
        forward=lambda d, x: (x - d.loc) / d.scale,
        log_slope=lambda d, x: -jnp.log(d.scale),
        inverse=lambda d, z: d.loc + d.scale * z,
    ),
    dist.LogNormal: NormalMap(
        forward=lambda d, x: (jnp.log(x) - d.loc) / d.scale,
        log_slope=lambda d, x: -jnp.log(d.scale) - jnp.log(x),
        inverse=lambda d, z: jnp.exp(d.loc + d.scale * z),
    ),
    dist.GaussianRandomWalk: NormalMap(
        forward=lambda d, x: jnp.diff(x, axis=-1, prepend=0) / _step(d),
        log_slope=lambda d, x: -jnp.log(_step(d)),
        inverse=lambda d, z: jnp.cumsum(_step(d) * z, axis=-1),
    ),
}


def has_quantiles(distribution: Distribution) -> bool:
    """Whether the distribution can be mapped to the standard normal accurately."""
    return type(distribution) in (*_TAILS, *_NORMAL)


def to_normal(distribution: Distribution, x: Array) -> tuple[Array, Array]:
    """Quantiles of the standard normal.

    :param distribution: one for which :func:`has_quantiles` holds; broadcasts against ``x``.
    :param x: values in its support.
    :return: ``z`` and ``log |dz/dx|``, each of the shape of ``x``.
    """
    if (exact := _NORMAL.get(type(distribution))) is not None:
        z = exact.forward(distribution, x)
        return z, jnp.broadcast_to(exact.log_slope(distribution, x), z.shape)
    z = _normal_quantile(distribution, x)
    log_normal = -0.5 * (z**2 + jnp.log(2 * jnp.pi))
    return z, distribution.log_prob(x) - log_normal


def from_normal(distribution: Distribution, z: Array) -> Array:
    """Undo :func:`to_normal`; finite and in the support for every finite ``z``."""
    if (exact := _NORMAL.get(type(distribution))) is not None:
        return exact.inverse(distribution, z)
    tails = _TAILS[type(distribution)]
    # not -|z|, whose derivative at zero is zero
    p = jnp.maximum(ndtr(jnp.where(z > 0, -z, z)), _SMALLEST)
    return jnp.where(z > 0, tails.isf(distribution, p), tails.icdf(distribution, p))


def _normal_quantile(distribution: Distribution, x: Array) -> Array:
    tails = _TAILS[type(distribution)]
    lower, upper = tails.cdf(distribution, x), tails.sf(distribution, x)
    # not the minimum, whose derivative at the median is the mean of both
    p = jnp.maximum(jnp.where(lower < upper, lower, upper), _SMALLEST)
    return jnp.where(lower < upper, 1.0, -1.0) * ndtri(p)
