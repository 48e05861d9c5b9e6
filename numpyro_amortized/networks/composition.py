# SPDX-License-Identifier: Apache-2.0
"""Draws given many groups, from the scores of single ones."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from numpyro_amortized.networks.continuous_flow import Mixture

__all__ = ["Composed", "Prior", "Sums", "composed_sample"]

_REACH = 4.0  # in ratios of noise to data
_FIRST = 3.0  # ratio of noise to data at which the prior and every posterior look alike


class Prior(NamedTuple):
    """The noisy prior, at states of a level.

    :param score: shape ``(num_samples, size)``.
    :param center: the score that is taken off that of each group, which is the mean of the groups'
        scores over all data there could be; ``score``, if these are without error.
    :param precision: ``P0``, of the variables given the state, shape ``(num_samples, size, size)``.
    """

    score: Array
    center: Array
    precision: Array


class Sums(NamedTuple):
    """Of groups, at states of a level, less what the prior says there once for each group.

    ``P`` is the precision of the variables given the state and a group, and ``P0`` without it.

    :param pull: ``P @ (score - center)``, shape ``(num_samples, size)``.
    :param information: ``P - P0``, shape ``(num_samples, size, size)``.
    """

    pull: Array
    information: Array


class Composed(NamedTuple):
    """What is composed: the prior, and what groups add to it.

    :param prior: level and states ``(num_samples, size)`` to the prior there.
    :param groups: index of a chunk of groups, level, states and the prior there, to the sums over
        the groups of the chunk.
    :param num_chunks: of all groups.
    """

    prior: Callable[[Mixture, Array], Prior]
    groups: Callable[[Array, Mixture, Array, Prior], Sums]
    num_chunks: int


def composed_sample(
    rng_key: Array,
    composed: Composed,
    start: Array,
    *,
    num_levels: int,
    last: float,
) -> Array:
    """Draws given all groups.

    The distributions of the variables given a noisy state compose as posteriors do:
    ``p(v | x, all) ~ p(v | x)^(1 - n) p(v | x, 1) ... p(v | x, n)``, since the noise enters each
    once. Each is taken to be normal, with the mean that the score gives [1]; normal distributions
    compose exactly, and all are nearly normal where the noise is small. A draw is made noisy again
    at the next, lower level, so that errors of early levels are forgotten.

    :param rng_key: a key.
    :param composed: scores and precisions.
    :param start: draws of the prior, shape ``(num_samples, size)``.
    :param num_levels: from the ratio 3 down to ``last``, in equal factors.
    :param last: the last ratio. The result is drawn from there in one step.
    :return: shape ``(num_samples, size)``.

    **References**

    1. Linhart, J., Victorino Cardoso, G., Gramfort, A., Le Corff, S. and Rodrigues, P. L. C.
       (2024). Diffusion posterior sampling for simulation-based inference in tall data settings.
    """
    chunks = jnp.arange(composed.num_chunks)

    def step(draws: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        ratio, key = row
        level = Mixture.of_ratio(ratio)
        noise_key, draw_key = random.split(key)
        x = level.data * draws + level.noise * random.normal(noise_key, draws.shape, draws.dtype)
        prior = composed.prior(level, x)
        sums = _sum(lambda chunk: composed.groups(chunk, level, x, prior), chunks)
        factor = jnp.linalg.cholesky(prior.precision + _positive(sums.information))
        # Tweedie: a mean is (x + noise^2 score) / data
        base = (x + level.noise**2 * prior.score) / level.data
        pull = level.noise**2 / level.data * sums.pull
        shift = _solve(factor, _solve(factor, pull), transposed=True)
        # farther away than the noise reaches, a normal distribution says nothing of the groups
        shift *= jnp.minimum(1, _REACH * ratio / jnp.abs(shift).max(-1, keepdims=True))
        normal = random.normal(draw_key, draws.shape, draws.dtype)
        return base + shift + _solve(factor, normal, transposed=True), None

    ratios = jnp.geomspace(_FIRST, last, num_levels, dtype=start.dtype)
    return lax.scan(step, start, (ratios, random.split(rng_key, num_levels)))[0]


def _sum(function: Callable[[Array], Sums], chunks: Array) -> Sums:
    """One chunk at a time, which bounds memory."""
    shapes = jax.eval_shape(function, chunks[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Sums, chunk: Array) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, function(chunk)), None

    return lax.scan(add, zeros, chunks)[0]


def _positive(matrix: Array) -> Array:
    """The nearest positive semi-definite matrices: data add information on the whole."""
    values, vectors = jnp.linalg.eigh((matrix + jnp.swapaxes(matrix, -1, -2)) / 2)
    scaled = vectors * jnp.maximum(values, 0)[..., None, :]
    return scaled @ jnp.swapaxes(vectors, -1, -2)


def _solve(factor: Array, x: Array, *, transposed: bool = False) -> Array:
    """Lower triangular systems, shape ``(num_samples, size)``."""
    return lax.linalg.triangular_solve(
        factor, x[..., None], left_side=True, lower=True, transpose_a=transposed
    )[..., 0]
