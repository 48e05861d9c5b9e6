# SPDX-License-Identifier: Apache-2.0
"""Summaries that are normally distributed over the simulations."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax


def mmd_to_normal(
    summaries: Array, *, scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)
) -> Array:
    """Squared maximum mean discrepancy of summaries to a standard normal [1].

    Added to the loss, it makes the summaries of simulations standard normal; data that the model
    cannot explain have summaries far from it [2]. Expectations over the normal are exact, so
    that the estimate has no noise but that of the batch. It is unbiased, and may be negative.

    :param summaries: those of a batch of simulations, shape ``(*batch, num_simulations, size)``.
    :param scales: bandwidths of the Gaussian kernels that are averaged, in units of
        ``sqrt(2 size)``, the distance of two draws of the normal.
    :return: shape ``(*batch,)``.
    :raises ValueError: where there are less than two simulations.

    **References**

    1. *A Kernel Two-Sample Test*, Gretton, Borgwardt, Rasch, Schoelkopf and Smola (2012), eq. 3.
    2. *Detecting Model Misspecification in Amortized Bayesian Inference with Neural Networks*,
       Schmitt, Buerkner, Koethe and Radev (2023).
    """
    num, size = summaries.shape[-2:]
    if num < 2:
        raise ValueError(f"summaries: expected those of two or more simulations, got {num}.")
    variances = 2 * size * jnp.square(jnp.asarray(scales, summaries.dtype))
    among = _gaussian(_squared_distances(summaries), variances)
    pairs = jnp.where(jnp.eye(num, dtype=bool)[..., None], 0, among).sum((-3, -2))
    norms = jnp.sum(summaries**2, axis=-1)
    # a Gaussian kernel's mean over a Gaussian is a wider kernel, times the ratio of volumes
    across = _gaussian(norms, variances + 1) * (variances / (variances + 1)) ** (size / 2)
    within = (variances / (variances + 2)) ** (size / 2)
    return jnp.mean(pairs / (num * (num - 1)) - 2 * across.mean(-2) + within, axis=-1)


def _gaussian(squared_distances: Array, variances: Array) -> Array:
    """Shape ``(*squared_distances.shape, scales)``."""
    return jnp.exp(-0.5 * squared_distances[..., None] / variances)


def _squared_distances(x: Array) -> Array:
    """Shape ``(*batch, num, num)`` of ``(*batch, num, size)``."""
    products = jnp.einsum("...id,...jd->...ij", x, x, precision=lax.Precision.HIGHEST)
    norms = jnp.sum(x**2, axis=-1)
    return jnp.maximum(norms[..., :, None] + norms[..., None, :] - 2 * products, 0)
