# SPDX-License-Identifier: Apache-2.0
"""Draws given many groups, from the scores of single ones."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax, random

from numpyro_amortized.networks.continuous_flow import Level

__all__ = ["Composed", "composed_sample"]

_FIRST = 3.0  # ratio of noise to data at which the prior and every posterior look alike


class Composed(NamedTuple):
    """What is composed: the prior, and its differences to the posteriors of groups.

    :param score: of the noisy prior, at a :class:`Level` and states ``(num_samples, size)``.
    :param precision: of the prior, shape ``(size, size)``.
    :param differences: of groups, an index of a chunk of them: given a level, states and the score
        of the prior there, sums over the groups of the chunk of ``(precision + (data / noise)^2) @
        (score - prior score)``, shape ``(num_samples, size)``.
    :param information: sum over the groups of a chunk of their precisions less the prior's,
        shape ``(size, size)``.
    :param num_chunks: of all groups.
    """

    score: Callable[[Level, Array], Array]
    precision: Array
    differences: Callable[[Array, Level, Array, Array], Array]
    information: Callable[[Array], Array]
    num_chunks: int


def composed_sample(
    rng_key: Array,
    composed: Composed,
    start: Array,
    make_level: Callable[[Array], Level],
    *,
    num_levels: int,
    last: float,
) -> Array:
    """Draws given all groups.

    The distribution of the variables given a noisy state is a prior-to-data update in itself: with
    the densities of groups, ``p(v | x, all) ~ p(v | x)^(1 - n) p(v | x, 1) ... p(v | x, n)``, since
    the noise enters each factor once. Each is taken to be normal, with the mean that the score
    gives and the covariance of theorem 1 of [1], ``(precision + (data / noise)^2)^-1``: normal
    distributions compose exactly. A draw from it is made noisy again at the next, lower level, so
    that errors of early levels are forgotten.

    :param rng_key: a key.
    :param composed: scores and precisions.
    :param start: draws of the prior, shape ``(num_samples, size)``.
    :param make_level: ratio of noise to data to a level.
    :param num_levels: from the ratio 3 down to ``last``, in equal factors.
    :param last: the last ratio. A draw is made from there in one step, normal around its mean.
    :return: shape ``(num_samples, size)``.

    **References**

    1. Linhart, J., Victorino Cardoso, G., Gramfort, A., Le Corff, S. and Rodrigues, P. L. C.
       (2024). Diffusion posterior sampling for simulation-based inference in tall data settings.
    """
    size = start.shape[-1]
    eye = jnp.eye(size, dtype=start.dtype)
    chunks = jnp.arange(composed.num_chunks)
    information = _sum(composed.information, chunks, jnp.zeros_like(eye))
    total = composed.precision + _positive(information)

    def step(draws: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        ratio, key = row
        level = make_level(ratio)
        noise_key, draw_key = random.split(key)
        x = level.data * draws + level.noise * random.normal(noise_key, draws.shape, draws.dtype)
        prior = composed.score(level, x)
        slopes = _sum(
            lambda chunk: composed.differences(chunk, level, x, prior), chunks, jnp.zeros_like(x)
        )
        # Tweedie: a mean is (x + noise^2 score) / data
        base = (x + level.noise**2 * prior) / level.data
        factor = jnp.linalg.cholesky(total + eye / ratio**2)
        pull = level.noise**2 / level.data * slopes
        whitened = lax.linalg.triangular_solve(factor, pull, lower=True, transpose_a=True)
        normal = random.normal(draw_key, draws.shape, draws.dtype)
        return base + lax.linalg.triangular_solve(factor, whitened + normal, lower=True), None

    ratios = jnp.geomspace(_FIRST, last, num_levels, dtype=start.dtype)
    return lax.scan(step, start, (ratios, random.split(rng_key, num_levels)))[0]


def _sum(function: Callable[[Array], Array], chunks: Array, zero: Array) -> Array:
    """One chunk at a time, which bounds memory."""
    return lax.scan(lambda total, chunk: (total + function(chunk), None), zero, chunks)[0]


def _positive(matrix: Array) -> Array:
    """The nearest positive semi-definite matrix: data add information on the whole."""
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * jnp.maximum(values, 0)) @ vectors.T
