# SPDX-License-Identifier: Apache-2.0
"""Deep sets."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import jax.numpy as jnp
from flax import nnx
from jax import Array

from numpyro_amortized.networks.masks import fill, log_count, masked_mean, masked_spread
from numpyro_amortized.networks.mlp import MLP, swish


@final
class DeepSet(nnx.Module):
    """Permutation-invariant summary of a set [1].

    Each member is embedded, the embeddings are averaged over the set, and the average and the
    logarithm of the set's size are mapped to the summary. The spread of the embeddings joins their
    average [2]: how much members differ is then known wherever they are.

    :param size: number of features of a member.
    :param summary_size: length of the summary.
    :param widths: hidden layers of both perceptrons.
    :param embedding_size: length of a member's embedding.
    :param spread: whether the standard deviations of the embeddings join their averages.
    :param activation: their activation.
    :param rngs: random streams of the initial parameters.

    **References**

    1. *Deep Sets*, Zaheer, Kottur, Ravanbakhsh, Poczos, Salakhutdinov and Smola (2017).
    2. *Principal Neighbourhood Aggregation for Graph Nets*, Corso, Cavalleri, Beaini, Liò and
       Veličković (2020), section 2.
    """

    def __init__(
        self,
        size: int,
        summary_size: int = 32,
        *,
        widths: Sequence[int] = (64, 64),
        embedding_size: int = 64,
        spread: bool = True,
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        self.summary_size = summary_size
        perceptron = partial(MLP, widths=widths, activation=activation, rngs=rngs)
        self.embed = perceptron(size, embedding_size)
        self.spread = spread
        self.summarize = perceptron((1 + spread) * embedding_size + 1, summary_size)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Summaries, shape ``(*batch, summary_size)``.

        :param x: sets, shape ``(*batch, members, size)``.
        :param mask: booleans, shape ``(*batch, members)``; members where it is false are
            left out, whatever their values.
        """
        x, mask = fill(x, mask)
        embedded = self.embed(x)
        parts = [masked_mean(embedded, mask), log_count(x, mask)]
        parts += [masked_spread(embedded, mask)] if self.spread else []
        return self.summarize(jnp.concatenate(parts, axis=-1))
