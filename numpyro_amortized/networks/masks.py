# SPDX-License-Identifier: Apache-2.0
"""Masked members of a set, a series or an image."""

import jax.numpy as jnp
from jax import Array


def fill(x: Array, mask: Array | None, num_axes: int = 1) -> tuple[Array, Array]:
    """Zeros where the mask is false, and the mask as an array.

    What has no members gets one, masked: maxima over members and convolutions need one.

    :param x: shape ``(*batch, *members, size)``.
    :param mask: booleans, shape ``(*batch, *members)``; ``None`` keeps all members.
    :param num_axes: number of axes of members.
    """
    mask = jnp.ones(x.shape[:-1], bool) if mask is None else jnp.broadcast_to(mask, x.shape[:-1])
    x = jnp.where(mask[..., None], x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    batch = (mask.ndim - num_axes) * [(0, 0)]
    padding = batch + [(0, int(length == 0)) for length in mask.shape[len(batch) :]]
    return jnp.pad(x, [*padding, (0, 0)]), jnp.pad(mask, padding)


def masked_mean(x: Array, mask: Array, num_axes: int = 1) -> Array:
    """Means over the members, shape ``(*batch, size)``; zeros where there are none."""
    axes = tuple(range(-num_axes - 1, -1))
    count = jnp.sum(mask[..., None], axis=axes)
    return jnp.sum(x * mask[..., None], axis=axes) / jnp.maximum(count, 1)


def masked_spread(x: Array, mask: Array) -> Array:
    """Standard deviations over the members, shape ``(*batch, size)``; near zero of a single one."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean[..., None, :]) ** 2, mask)
    return jnp.sqrt(variance + _LEAST_VARIANCE)  # the root has no derivative at zero


_LEAST_VARIANCE = 1e-8


def log_count(x: Array, mask: Array, num_axes: int = 1) -> Array:
    """``log(1 + number of members)`` in the type of ``x``, shape ``(*batch, 1)``.

    Means over the members do not tell how many there were, which posteriors depend on.
    """
    count = jnp.sum(mask[..., None], axis=tuple(range(-num_axes - 1, -1)))
    return jnp.log1p(count.astype(x.dtype))
