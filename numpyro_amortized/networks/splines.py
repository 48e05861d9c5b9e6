# SPDX-License-Identifier: Apache-2.0
"""Rational-quadratic splines."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortized.networks.affine import Affine

_MIN_SIZE = 1e-3  # of a bin, as a share of the interval; of a derivative


class Spline(NamedTuple):
    """Affine map followed by a monotone rational-quadratic spline with linear tails [1].

    The affine part moves and scales each conditional distribution into the interval on which
    the spline has its bins, which a spline alone can do only by spending them.

    :param bins: number of bins.
    :param bound: the spline acts on ``[-bound, bound]`` and is the identity outside.

    **References**

    1. *Neural Spline Flows*, Durkan, Bekasov, Murray and Papamakarios (2019).
    """

    bins: int = 8
    bound: float = 5.0

    @property
    def num_params(self) -> int:
        """Parameters of each variable."""
        return Affine().num_params + 3 * self.bins - 1

    def forward(self, params: Array, x: Array) -> tuple[Array, Array]:
        """To the base space.

        :param params: shape ``(*batch, num_params)``.
        :param x: shape ``(*batch,)``.
        :return: the transformed value and the log derivative, each ``(*batch,)``.
        """
        affine, spline = jnp.split(params, [Affine().num_params], axis=-1)
        u, log_scale = Affine().forward(affine, x)
        y, log_slope = _forward(_bin(self._knots(spline, x.ndim), u, by=0), u, self.bound)
        return y, log_scale + log_slope

    def inverse(self, params: Array, y: Array) -> tuple[Array, Array]:
        """From the base space; shapes as in :meth:`forward`, log derivative of the inverse."""
        affine, spline = jnp.split(params, [Affine().num_params], axis=-1)
        u, log_slope = _inverse(_bin(self._knots(spline, y.ndim), y, by=1), y, self.bound)
        x, log_scale = Affine().inverse(affine, u)
        return x, log_slope + log_scale

    def _knots(self, params: Array, ndim: int) -> tuple[Array, Array, Array]:
        """Widths and heights, shape ``(bins, ...)``; inner derivatives ``(bins - 1, ...)``.

        Bins come first: sums over them then run along the batch, which vectorizes.
        """
        # one context may serve many values: with the bins first, batch axes are aligned by hand
        missing = max(0, ndim + 1 - params.ndim)
        params = params.reshape((1,) * missing + params.shape)
        # the barrier keeps the transposition out of the loops before and after, which vectorize
        params = jax.lax.optimization_barrier(jnp.moveaxis(params, -1, 0))
        widths, heights, slopes = jnp.split(params, [self.bins, 2 * self.bins])
        # softplus(x + shift) is 1 at x = 0: the spline starts as the identity
        shift = math.log(math.expm1(1 - _MIN_SIZE))
        slopes = _MIN_SIZE + jax.nn.softplus(slopes + shift)
        return self._sizes(widths), self._sizes(heights), slopes

    def _sizes(self, logits: Array) -> Array:
        shares = _MIN_SIZE + (1 - _MIN_SIZE * self.bins) * jax.nn.softmax(logits, axis=0)
        return 2 * self.bound * shares


class _Bin(NamedTuple):
    """The bin in which a value falls: corner, width, height, derivatives at both ends."""

    x: Array
    y: Array
    width: Array
    height: Array
    slope: Array
    next_slope: Array


def _bin(knots: tuple[Array, Array, Array], value: Array, *, by: int) -> _Bin:
    """Select by a one-hot product: its gradient is a product too, not a scatter."""
    widths, heights, slopes = knots
    bound = jnp.sum(knots[by], axis=0) / 2
    ends = jnp.cumsum(knots[by], axis=0)[:-1] - bound
    above = (value >= ends).astype(value.dtype)
    none = jnp.zeros_like(above[:1])
    left = jnp.concatenate([above, none])
    chosen = jnp.concatenate([none + 1, above]) - left

    def pick(weights: Array, array: Array) -> Array:
        return jnp.sum(weights * array, axis=0)

    picked = _Bin(
        x=pick(left, widths) - bound,
        y=pick(left, heights) - bound,
        width=pick(chosen, widths),
        height=pick(chosen, heights),
        slope=chosen[0] + pick(chosen[1:], slopes),  # the first and the last derivative are 1
        next_slope=chosen[-1] + pick(chosen[:-1], slopes),
    )
    # the barrier keeps the sums out of the formulas, which would repeat them
    return jax.lax.optimization_barrier(picked)


def _log_slope(b: _Bin, xi: Array, delta: Array, denominator: Array) -> Array:
    """Eq. 5 of Durkan et al. (2019)."""
    numerator = b.next_slope * xi**2 + 2 * delta * xi * (1 - xi) + b.slope * (1 - xi) ** 2
    return 2 * jnp.log(delta) + jnp.log(numerator) - 2 * jnp.log(denominator)


def _forward(b: _Bin, x: Array, bound: float) -> tuple[Array, Array]:
    """Eq. 4 of Durkan et al. (2019)."""
    inside = jnp.abs(x) < bound
    xi = jnp.where(inside, jnp.clip((x - b.x) / b.width, 0.0, 1.0), 0.5)
    delta = b.height / b.width
    denominator = delta + (b.next_slope + b.slope - 2 * delta) * xi * (1 - xi)
    y = b.y + b.height * (delta * xi**2 + b.slope * xi * (1 - xi)) / denominator
    log_slope = _log_slope(b, xi, delta, denominator)
    return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0.0)


def _inverse(b: _Bin, y: Array, bound: float) -> tuple[Array, Array]:
    """Eqs. 6 to 8 of Durkan et al. (2019), the root in its stable form."""
    inside = jnp.abs(y) < bound
    delta = b.height / b.width
    rise = jnp.where(inside, jnp.clip(y - b.y, 0.0, b.height), 0.5 * b.height)
    bend = b.next_slope + b.slope - 2 * delta
    a2 = b.height * (delta - b.slope) + rise * bend
    a1 = b.height * b.slope - rise * bend
    a0 = -delta * rise
    discriminant = jnp.maximum(a1**2 - 4 * a2 * a0, 0.0)
    xi = jnp.clip(2 * a0 / (-a1 - jnp.sqrt(discriminant)), 0.0, 1.0)
    log_slope = _log_slope(b, xi, delta, delta + bend * xi * (1 - xi))
    return jnp.where(inside, b.x + xi * b.width, y), jnp.where(inside, -log_slope, 0.0)
