# SPDX-License-Identifier: Apache-2.0
"""Residual convolutional networks."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import final

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from numpyro_amortized.networks.masks import fill, log_count, masked_mean
from numpyro_amortized.networks.mlp import MLP, dense, swish
from numpyro_amortized.networks.normalization import layer_norm
from numpyro_amortized.networks.stacked import scan_layers, stack


class ConvolutionLayer(nnx.Module):
    """A convolution of stride one, as one matrix product over the neighbourhoods.

    In a loop, where training runs, XLA's own convolutions take ten times as long on CPUs.

    :param size: number of channels.
    :param out_size: number of channels of the output.
    :param kernel_size: number of neighbours along an axis, odd.
    :param num_spatial_dims: number of axes.
    :param rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        size: int,
        out_size: int,
        *,
        kernel_size: int,
        num_spatial_dims: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel_size = kernel_size
        self.num_spatial_dims = num_spatial_dims
        self.linear = dense(size * kernel_size**num_spatial_dims, out_size, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Shape ``(*batch, *spatial, out_size)`` of ``(*batch, *spatial, size)``."""
        for axis in range(x.ndim - 1 - self.num_spatial_dims, x.ndim - 1):
            x = _with_neighbours(x, axis, self.kernel_size)
        return self.linear(x)


class ResidualBlock(nnx.Module):
    """Two convolutions of normalized activations, added to the input (He et al., 2016)."""

    def __init__(
        self,
        width: int,
        *,
        convolution: Callable[..., ConvolutionLayer],
        activation: Callable[[Array], Array],
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = activation
        self.norms = nnx.List(layer_norm(width, rngs=rngs) for _ in range(2))
        self.convolutions = nnx.List(convolution(width, width) for _ in range(2))

    def __call__(self, x: Array, mask: Array) -> Array:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(jnp.where(mask[..., None], self.activation(norm(h)), 0))
        return x + h


@final
class Convolution(nnx.Module):
    """Summary of a series, an image or a volume on a regular grid [1].

    Before every stage of residual blocks, pairs of neighbours along every axis are averaged. What
    is left is averaged over the grid and mapped to the summary, with the logarithm of the number
    of cells.

    :param size: number of channels of a cell.
    :param summary_size: length of the summary.
    :param num_spatial_dims: 1 for series, 2 for images, 3 for volumes.
    :param widths: numbers of channels of the stages.
    :param depth: residual blocks of a stage.
    :param kernel_size: length of a kernel along an axis, odd.
    :param coordinates: whether a cell sees its position on the grid, from -1 to 1, without which
        places in it are hard to tell [2].
    :param activation: that of all layers.
    :param rngs: random streams of the initial parameters.

    >>> network = Convolution(3, 8, num_spatial_dims=2, widths=(8, 16), rngs=nnx.Rngs(0))
    >>> network(jnp.ones((5, 28, 28, 3))).shape
    (5, 8)

    **References**

    1. *Identity Mappings in Deep Residual Networks*, He, Zhang, Ren and Sun (2016).
    2. *An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution*, Liu et
       al. (2018).
    """

    def __init__(
        self,
        size: int,
        summary_size: int = 32,
        *,
        num_spatial_dims: int = 1,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 1,
        kernel_size: int = 3,
        coordinates: bool = True,
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}.")
        self.summary_size = summary_size
        self.num_spatial_dims = num_spatial_dims
        self.coordinates = coordinates
        self.activation = activation
        layer = partial(
            ConvolutionLayer, kernel_size=kernel_size, num_spatial_dims=num_spatial_dims, rngs=rngs
        )
        block = partial(ResidualBlock, convolution=layer, activation=activation, rngs=rngs)
        self.stem = layer(size + coordinates * num_spatial_dims, widths[0])
        self.widen = nnx.List(dense(*pair, rngs=rngs) for pair in pairwise([widths[0], *widths]))
        self.stages = nnx.List(stack([block(width) for _ in range(depth)]) for width in widths)
        self.summarize = MLP(
            widths[-1] + 1, summary_size, widths=widths[-1:], activation=activation, rngs=rngs
        )

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Summaries, shape ``(*batch, summary_size)``.

        :param x: shape ``(*batch, *spatial, size)``; that of a series is ``(*batch, steps, size)``,
            that of an image ``(*batch, height, width, channels)``.
        :param mask: booleans, shape ``(*batch, *spatial)``; cells where it is false are as those
            beyond the edge, whatever their values.
        """
        x, mask = fill(x, mask, self.num_spatial_dims)
        count = log_count(x, mask, self.num_spatial_dims)
        if self.coordinates:
            x = jnp.concatenate([x, _coordinates(mask, self.num_spatial_dims, x)], axis=-1)
        h = self._convolve(self.activation(self.stem(x)), mask)
        return self.summarize(jnp.concatenate([h, count], axis=-1))

    def _convolve(self, h: Array, mask: Array) -> Array:
        """Mean features, shape ``(*batch, widths[-1])``."""
        for widen, blocks in zip(self.widen, self.stages, strict=True):
            h, mask = _pool(h, mask, self.num_spatial_dims)
            h = scan_layers(partial(_apply, mask=mask), blocks, widen(h))
        return masked_mean(h, mask, self.num_spatial_dims)


def _apply(block: ResidualBlock, h: Array, *, mask: Array) -> Array:
    return block(h, mask)


def _with_neighbours(x: Array, axis: int, kernel_size: int) -> Array:
    """Channels of a cell and of its neighbours along an axis; zeros beyond the edge."""
    length, reach = x.shape[axis], kernel_size // 2
    x = jnp.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)])
    shifted = [lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(kernel_size)]
    return jnp.concatenate(shifted, axis=-1)


def _pool(x: Array, mask: Array, num_axes: int) -> tuple[Array, Array]:
    """Means over the unmasked of two neighbours along every axis, masked where there are none."""
    total, count = x * mask[..., None], mask[..., None].astype(x.dtype)
    for axis in range(x.ndim - 1 - num_axes, x.ndim - 1):
        total, count = _sum_pairs(total, axis), _sum_pairs(count, axis)
    return total / jnp.maximum(count, 1), count[..., 0] > 0


def _sum_pairs(x: Array, axis: int) -> Array:
    padding = [(0, x.shape[axis] % 2 if i == axis else 0) for i in range(x.ndim)]
    x = jnp.pad(x, padding)
    return x.reshape((*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])).sum(axis + 1)


def _coordinates(mask: Array, num_axes: int, x: Array) -> Array:
    """Positions within the extent of the unmasked, shape ``(*batch, *spatial, num_axes)``.

    They do not depend on how far the array is padded.
    """
    axes = tuple(range(mask.ndim - num_axes, mask.ndim))
    positions = []
    for axis in axes:
        index = lax.broadcasted_iota(x.dtype, mask.shape, axis)
        extent = jnp.max(jnp.where(mask, index + 1, 1), axis=axes, keepdims=True)
        positions.append(jnp.where(mask, (2 * index + 1) / extent - 1, 0))
    return jnp.stack(positions, axis=-1)
