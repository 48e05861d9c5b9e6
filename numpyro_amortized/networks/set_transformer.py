# SPDX-License-Identifier: Apache-2.0
"""Set transformers."""

from collections.abc import Callable
from functools import partial
from typing import Any, final

import jax.numpy as jnp
from flax import nnx
from jax import Array

from numpyro_amortized.networks.attention import (
    AttentionBlock,
    AttentionPooling,
    learned_members,
)
from numpyro_amortized.networks.masks import fill, log_count
from numpyro_amortized.networks.mlp import MLP, dense, swish
from numpyro_amortized.networks.stacked import scan_layers, stack


class InducedAttention(nnx.Module):
    """Members exchange what they know through a few learned points.

    The block ISAB of Lee et al. (2019), eq. 9 and 10: its cost is linear in the members.
    """

    def __init__(
        self, width: int, *, num_inducing: int, block: Callable[..., nnx.Module], rngs: nnx.Rngs
    ) -> None:
        self.points = learned_members(num_inducing, width, rngs=rngs)
        self.gather = block(width, rngs=rngs)
        self.spread = block(width, rngs=rngs)

    def __call__(self, x: Array, mask: Array) -> Array:
        gathered = self.gather(self.points[...].astype(x.dtype), x, mask)
        return self.spread(x, gathered)


@final
class SetTransformer(nnx.Module):
    """Permutation-invariant summary of a set whose members interact [1].

    Members are embedded, exchange information by attention through induced points, and are pooled
    by attention of learned queries. The logarithm of the set's size joins what is pooled.

    :param size: number of features of a member.
    :param summary_size: length of the summary.
    :param width: length of a member's embedding.
    :param depth: number of blocks of induced attention.
    :param num_heads: heads of every attention; they divide the width.
    :param num_inducing: number of induced points.
    :param num_seeds: number of queries that pool the set.
    :param activation: that of the perceptrons.
    :param rngs: random streams of the initial parameters.

    >>> network = SetTransformer(2, 8, width=16, rngs=nnx.Rngs(0))
    >>> network(jnp.ones((5, 50, 2))).shape
    (5, 8)

    **References**

    1. *Set Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks*,
       Lee, Lee, Kim, Kosiorek, Choi and Teh (2019).
    """

    def __init__(
        self,
        size: int,
        summary_size: int = 32,
        *,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        num_inducing: int = 16,
        num_seeds: int = 1,
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        self.summary_size = summary_size
        options: dict[str, Any] = {"num_heads": num_heads, "activation": activation}
        block = partial(AttentionBlock, **options)
        self.embed = dense(size, width, rngs=rngs)
        self.layers = stack(
            [
                InducedAttention(width, num_inducing=num_inducing, block=block, rngs=rngs)
                for _ in range(depth)
            ]
        )
        self.pool = AttentionPooling(width, num_seeds=num_seeds, rngs=rngs, **options)
        self.summarize = MLP(
            num_seeds * width + 1, summary_size, widths=(width,), activation=activation, rngs=rngs
        )

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Summaries, shape ``(*batch, summary_size)``.

        :param x: sets, shape ``(*batch, members, size)``.
        :param mask: booleans, shape ``(*batch, members)``; members where it is false are
            left out, whatever their values.
        """
        x, mask = fill(x, mask)
        h = scan_layers(lambda layer, h: layer(h, mask), self.layers, self.embed(x))
        return self.summarize(jnp.concatenate([self.pool(h, mask), log_count(x, mask)], axis=-1))
