# SPDX-License-Identifier: Apache-2.0
"""Pareto smoothed importance sampling, for many sets of weights in one program.

**References**

1. *Pareto smoothed importance sampling*, Vehtari, Simpson, Gelman, Yao and Gabry (2024).
2. *A new and efficient estimation method for the generalized Pareto distribution*, Zhang and
   Stephens (2009).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

__all__ = ["Smoothed", "are_even", "largest_k", "smooth_weights"]

_MIN_TAIL = 5
_PRIOR_K, _PRIOR_SIZE = 0.5, 10  # weakly informative prior of the shape, appendix C of [1]
_PRIOR_SCALE = 3
_EVEN, _LARGEST = 0.99, 10.0
_ROUNDING = 1e-3  # of a log weight in float32: a tail that is no wider is fitted by its noise


class Smoothed(NamedTuple):
    """Normalized log weights, whose largest are smoothed, and the shape of their tail."""

    log_weights: Array
    pareto_k: Array


def largest_k(num_samples: int) -> float:
    """The k-hat up to which so many weights can be trusted, ``min(1 - 1 / log10(S), 0.7)`` [1]."""
    return min(1 - 1 / math.log10(max(num_samples, 2)), 0.7)


def are_even[T: (Array, np.ndarray)](weights: T) -> T:
    """Whether weights are so nearly equal that they can be trusted whatever k-hat is.

    The k-hat of such weights is that of rounding and of the last errors of the network, whose size
    it does not know. Here the effective sample size is 99 % of all, and no weight is above ten
    times their mean. Bounded weights have all moments; that the bound is above the largest of S
    weights concerns a share of 1 / S of the draws.

    :param weights: not smoothed, shape ``(*batch, num_samples)``, adding up to one.
    """
    num_samples = weights.shape[-1]
    is_worth_all = (weights**2).sum(-1) * num_samples * _EVEN <= 1
    return is_worth_all & (weights.max(-1) * num_samples <= _LARGEST)


def smooth_weights(log_weights: Array) -> Smoothed:
    """Algorithm 1 of [1], of the weights of one data set.

    The shape is minus infinity where the largest weights are equal up to rounding, and infinity
    where nothing can be said: too few draws, or nearly all of them have no weight.

    :param log_weights: shape ``(num_samples,)``, of any scale.
    :return: log weights whose exponentials add up to one, and k-hat, a scalar.
    """
    num_samples = log_weights.shape[0]
    num_tail = math.floor(min(num_samples / 5, 3 * math.sqrt(num_samples)))
    largest = jnp.max(log_weights)
    scaled = log_weights - jnp.where(jnp.isfinite(largest), largest, 0)
    if num_tail < _MIN_TAIL:
        return Smoothed(scaled - logsumexp(scaled), jnp.full((), jnp.inf))
    order = jnp.argsort(scaled)
    cutoff, tail = scaled[order[-num_tail - 1]], scaled[order[-num_tail:]]
    # not exp(tail) - exp(cutoff), which cancels where weights are nearly equal
    excess = jnp.exp(cutoff) * jnp.expm1(tail - jnp.where(jnp.isfinite(cutoff), cutoff, 0))
    excess = jnp.where(jnp.isfinite(cutoff), excess, jnp.exp(tail))
    k, sigma = _fit(excess)
    quantiles = _quantiles((jnp.arange(num_tail) + 0.5) / num_tail, k, sigma)
    smoothed = jnp.minimum(jnp.log(quantiles + jnp.exp(cutoff)), 0)
    is_fitted = jnp.isfinite(k) & jnp.isfinite(smoothed).all() & (tail[-1] - cutoff >= _ROUNDING)
    result = scaled.at[order[-num_tail:]].set(jnp.where(is_fitted, smoothed, tail))
    k = jnp.where(jnp.isnan(k), jnp.inf, k)
    k = jnp.where(tail[-1] - cutoff < _ROUNDING, -jnp.inf, k)
    k = jnp.where(jnp.isfinite(largest), k, jnp.inf)
    return Smoothed(result - logsumexp(result), k)


def _fit(excess: Array) -> tuple[Array, Array]:
    """Shape and scale of a generalized Pareto distribution, of sorted values ``(n,)`` [2].

    Not a number where a quarter of the values are the least one.
    """
    n = excess.shape[0]
    grid = jnp.arange(1, 30 + math.isqrt(n) + 1)
    quartile, largest = excess[int(n / 4 + 0.5) - 1], excess[-1]
    theta = 1 / largest + (1 - jnp.sqrt(len(grid) / (grid - 0.5))) / (_PRIOR_SCALE * quartile)
    k = jnp.mean(jnp.log1p(-theta[:, None] * excess), axis=1)
    profile = n * (jnp.log(-theta / k) - k - 1)
    weights = jax.nn.softmax(jnp.where(jnp.isnan(profile), -jnp.inf, profile))
    theta_mean = jnp.sum(weights * theta)
    k = jnp.mean(jnp.log1p(-theta_mean * excess))
    sigma = -k / theta_mean
    k = (n * k + _PRIOR_SIZE * _PRIOR_K) / (n + _PRIOR_SIZE)
    is_spread = quartile > excess[0]
    return jnp.where(is_spread, k, jnp.nan), sigma


def _quantiles(p: Array, k: Array, sigma: Array) -> Array:
    is_zero = jnp.abs(k) < 1e-6
    safe = jnp.where(is_zero, 1.0, k)
    power = jnp.expm1(-safe * jnp.log1p(-p)) / safe
    return sigma * jnp.where(is_zero, -jnp.log1p(-p), power)
