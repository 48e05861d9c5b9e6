# SPDX-License-Identifier: Apache-2.0
"""Attention among members of a set or a series, some of which may be masked."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from numpyro_amortized.initializers import host_generator, on_device
from numpyro_amortized.networks.mlp import MLP, dense, swish
from numpyro_amortized.networks.normalization import layer_norm


class MultiHeadAttention(nnx.Module):
    """Weighted means of values, by the likeness of queries and keys [1].

    :param width: length of inputs and outputs, a multiple of ``num_heads``.
    :param num_heads: number of means that are taken, each of its own share of the width.
    :param rngs: random streams of the initial parameters.
    :raises ValueError: where the heads do not divide the width.

    **References**

    1. *Attention Is All You Need*, Vaswani et al. (2017).
    """

    def __init__(self, width: int, *, num_heads: int, rngs: nnx.Rngs) -> None:
        if num_heads < 1 or width % num_heads:
            raise ValueError(
                f"num_heads: expected a divisor of width={width}, got {num_heads}; choose a width "
                "that is a multiple of it."
            )
        self.num_heads = num_heads
        self.query = dense(width, width, rngs=rngs)
        self.key = dense(width, width, bias=False, rngs=rngs)  # a bias would cancel in the softmax
        self.value = dense(width, width, rngs=rngs)
        self.output = dense(width, width, rngs=rngs)

    def __call__(self, x: Array, y: Array, mask: Array | None = None) -> Array:
        """What each member of ``x`` reads from those of ``y``, shape ``(*batch, queries, width)``.

        :param x: shape ``(*batch, queries, width)``, or ``(queries, width)`` for all of the batch.
        :param y: shape ``(*batch, members, width)``.
        :param mask: booleans, shape ``(*batch, members)``; where it is false nothing is read.
        """
        query, key, value = self._split(self.query(x)), self._split(self.key(y)), self.value(y)
        # half of the usual scale: He's kernels double the variances of queries and keys
        scale = 0.5 / math.sqrt(query.shape[-1])
        logits = _einsum("...qhd,...khd->...hqk", query * scale, key)
        weights = _weights(logits, None if mask is None else mask[..., None, None, :])
        sums = _einsum("...hqk,...khd->...qhd", weights, self._split(value))
        # to divide the sums takes fewer operations than to normalize the weights
        total = jnp.moveaxis(jnp.sum(weights, axis=-1), -2, -1)[..., None]
        means = sums / jnp.where(total > 0, total, 1)
        return self.output(means.reshape((*means.shape[:-2], -1)))

    def _split(self, x: Array) -> Array:
        return x.reshape((*x.shape[:-1], self.num_heads, -1))


class AttentionBlock(nnx.Module):
    """Attention and a perceptron, each added to its input and normalized.

    The block MAB of Lee et al. (2019), eq. 6 and 7.

    :param width: length of inputs and outputs.
    :param num_heads: heads of the attention.
    :param activation: that of the perceptron, which has one hidden layer.
    :param rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        self.attention = MultiHeadAttention(width, num_heads=num_heads, rngs=rngs)
        self.perceptron = MLP(width, width, widths=(width,), activation=activation, rngs=rngs)
        self.norm_attention = layer_norm(width, rngs=rngs)
        self.norm_perceptron = layer_norm(width, rngs=rngs)

    def __call__(self, x: Array, y: Array, mask: Array | None = None) -> Array:
        """As :class:`MultiHeadAttention`."""
        h = self.norm_attention(x + self.attention(x, y, mask))
        return self.norm_perceptron(h + self.perceptron(h))


class AttentionPooling(nnx.Module):
    """What learned queries read from a set.

    The block PMA of Lee et al. (2019), eq. 11, without the perceptron before it: the blocks that
    made the members end with one.

    :param width: length of a member.
    :param num_seeds: number of queries.
    :param num_heads: heads of the attention.
    :param activation: that of the perceptron.
    :param rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        width: int,
        *,
        num_seeds: int = 1,
        num_heads: int,
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        self.seeds = learned_members(num_seeds, width, rngs=rngs)
        self.block = AttentionBlock(width, num_heads=num_heads, activation=activation, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Shape ``(*batch, num_seeds * width)`` of sets ``(*batch, members, width)``."""
        pooled = self.block(self.seeds[...].astype(x.dtype), x, mask)
        return pooled.reshape((*pooled.shape[:-2], -1))


def learned_members(num_members: int, width: int, *, rngs: nnx.Rngs) -> nnx.Param:
    """Trained members, at first standard normal, as those of a normalized set."""
    draws = host_generator(rngs.params()).standard_normal((num_members, width))
    return nnx.Param(on_device(draws, np.float32))


def _weights(logits: Array, mask: Array | None) -> Array:
    """Exponentials relative to the greatest one, zeros where the mask is false."""
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    return weights if mask is None else jnp.where(mask, weights, 0)


def _einsum(subscripts: str, *operands: Array) -> Array:
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)
