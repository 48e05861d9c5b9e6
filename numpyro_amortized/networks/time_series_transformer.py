# SPDX-License-Identifier: Apache-2.0
"""Transformers of time series."""

from collections.abc import Callable
from typing import Any, final

import jax.numpy as jnp
from flax import nnx
from jax import Array

from numpyro_amortized.networks.attention import AttentionBlock, AttentionPooling
from numpyro_amortized.networks.masks import fill, log_count
from numpyro_amortized.networks.mlp import MLP, dense, swish
from numpyro_amortized.networks.stacked import scan_layers, stack
from numpyro_amortized.networks.time_embeddings import Sinusoidal, TimeEmbedding


@final
class TimeSeriesTransformer(nnx.Module):
    """Summary of a time series, by attention among patches of it [1, 2].

    Patches of consecutive steps are embedded together with their times, attend to each other,
    and are pooled by attention of a learned query. What neighbouring steps have to do with each
    other is seen within patches, which takes attention alone long to learn; and the cost,
    quadratic in the number of patches, is small.

    :param size: number of features of a step.
    :param summary_size: length of the summary.
    :param time_embedding: makes the embedding of times: :class:`Sinusoidal`, :class:`Time2Vec`, or
        a partial of one.
    :param time_feature: the feature that holds the times; ``None`` for steps at 0, 1, 2, ...
    :param patch_size: number of steps of a patch, even, of which the next one shares half; 1 to
        make a patch of every step.
    :param width: length of a patch's embedding.
    :param depth: number of blocks of attention.
    :param num_heads: heads of every attention; they divide the width.
    :param activation: that of the perceptrons.
    :param rngs: random streams of the initial parameters.

    >>> network = TimeSeriesTransformer(2, 8, width=16, rngs=nnx.Rngs(0))
    >>> network(jnp.ones((5, 100, 2))).shape
    (5, 8)

    **References**

    1. *Attention Is All You Need*, Vaswani et al. (2017).
    2. *A Time Series is Worth 64 Words: Long-term Forecasting with Transformers*, Nie, Nguyen,
       Sinthong and Kalagnanam (2023).
    """

    def __init__(
        self,
        size: int,
        summary_size: int = 32,
        *,
        time_embedding: Callable[..., TimeEmbedding] = Sinusoidal,
        time_feature: int | None = None,
        patch_size: int = 8,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        if time_feature is not None and not -size <= time_feature < size:
            raise ValueError(
                f"time_feature: expected one of the {size} features of a step, got {time_feature}."
            )
        if patch_size < 1 or (patch_size > 1 and patch_size % 2):
            raise ValueError(f"patch_size: expected 1 or an even number, got {patch_size}.")
        self.summary_size = summary_size
        self.time_feature = time_feature
        self.patch_size = patch_size
        self.time_embedding = time_embedding(rngs=rngs)
        patch = patch_size * (size + 1) + self.time_embedding.size
        self.embed = dense(patch, width, rngs=rngs)
        options: dict[str, Any] = {"num_heads": num_heads, "activation": activation, "rngs": rngs}
        self.layers = stack([AttentionBlock(width, **options) for _ in range(depth)])
        self.pool = AttentionPooling(width, **options)
        self.summarize = MLP(
            width + 1, summary_size, widths=(width,), activation=activation, rngs=rngs
        )

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Summaries, shape ``(*batch, summary_size)``.

        :param x: series, shape ``(*batch, steps, size)``.
        :param mask: booleans, shape ``(*batch, steps)``; steps where it is false are missing,
            whatever their values. They count in the times of the others.
        """
        x, mask = fill(x, mask)
        count = log_count(x, mask)
        patches, times, mask = self._patches(x, mask)
        h = self.embed(jnp.concatenate([patches, self.time_embedding(times)], axis=-1))
        h = scan_layers(lambda layer, h: layer(h, h, mask), self.layers, h)
        return self.summarize(jnp.concatenate([self.pool(h, mask), count], axis=-1))

    def _patches(self, x: Array, mask: Array) -> tuple[Array, Array, Array]:
        """Patches with their masks, shape ``(*batch, patches, patch_size * (size + 1))``, their
        times and which of them begin with observed steps, each ``(*batch, patches)``."""
        stride = -(-self.patch_size // 2)
        seen = mask[..., None].astype(x.dtype)
        halves = _blocks(jnp.concatenate([x, seen], axis=-1), stride)
        patches = halves.reshape((*halves.shape[:-2], -1))
        if self.patch_size > 1:
            following = jnp.zeros_like(patches).at[..., :-1, :].set(patches[..., 1:, :])
            patches = jnp.concatenate([patches, following], axis=-1)
        times, seen = _blocks(self._times(x)[..., None] * seen, stride), _blocks(seen, stride)
        count = seen.sum((-2, -1))
        return patches, times.sum((-2, -1)) / jnp.maximum(count, 1), count > 0

    def _times(self, x: Array) -> Array:
        if self.time_feature is not None:
            return x[..., self.time_feature]
        return jnp.broadcast_to(jnp.arange(x.shape[-2], dtype=x.dtype), x.shape[:-1])


def _blocks(x: Array, length: int) -> Array:
    """Blocks of steps, shape ``(*batch, blocks, length, size)``, with zeros at the end."""
    padding = [*(x.ndim - 2) * [(0, 0)], (0, -x.shape[-2] % length), (0, 0)]
    x = jnp.pad(x, padding)
    return x.reshape((*x.shape[:-2], -1, length, x.shape[-1]))
