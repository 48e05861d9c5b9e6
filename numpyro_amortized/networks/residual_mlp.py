# SPDX-License-Identifier: Apache-2.0
"""Residual perceptron that is conditioned on time."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, final

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from numpyro_amortized.initializers import he_normal, zeros
from numpyro_amortized.networks.mlp import dense, swish
from numpyro_amortized.networks.stacked import stack

_FREQUENCIES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


class Conditioning(NamedTuple):
    """What a context contributes, computed once for all times and inputs.

    :param hidden: summand of the first hidden layer, shape ``(*batch, width)``.
    :param modulation: summands of scales and shifts, shape ``(depth, *batch, 2, width)``.
    """

    hidden: Array
    modulation: Array


@final
class Modulation(nnx.Module):
    """Scales and shifts of all blocks, linear in an embedding of the input, and at first zero.

    :param size: length of the input.
    :param embedding_size: length of the embedding.
    :param shape: depth and width of the blocks.
    :param activation: applied to the embedding.
    :param rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        size: int,
        embedding_size: int,
        shape: tuple[int, int],
        *,
        activation: Callable[[Array], Array],
        rngs: nnx.Rngs,
    ) -> None:
        self.shape = shape
        self.activation = activation
        self.embedding = dense(size, embedding_size, rngs=rngs)
        out_size = 2 * shape[0] * shape[1]
        self.output = dense(embedding_size, out_size, kernel_init=zeros, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Shape ``(depth, *batch, 2, width)``."""
        depth, width = self.shape
        modulation = self.output(self.activation(self.embedding(x)))
        return jnp.moveaxis(modulation.reshape((*x.shape[:-1], depth, 2, width)), -3, 0)


@final
class ResidualMLP(nnx.Module):
    """Residual perceptron, modulated feature-wise by time and context [1].

    Each block adds ``dense(activation((1 + scale) * h + shift))`` to ``h``, where scale and shift
    are linear in embeddings of time and context. The output is zero at first. Blocks are stacked
    and scanned over: compile time does not grow with their number.

    :param size: length of the input.
    :param out_size: length of the output.
    :param widths: width of each block; all are equal, since a block adds to its input.
    :param context_size: length of the context, 0 for none.
    :param embedding_size: length of the embeddings of time and context.
    :param activation: applied in every block.
    :param rngs: random streams of the initial parameters.
    :raises ValueError: where there is no width, or they differ.

    **References**

    1. *FiLM: Visual Reasoning with a General Conditioning Layer*, Perez, Strub, de Vries, Dumoulin
       and Courville (2018).
    """

    def __init__(
        self,
        size: int,
        out_size: int,
        *,
        widths: Sequence[int] = (256,) * 5,
        context_size: int = 0,
        embedding_size: int = 32,
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        if size < 1 or len(set(widths)) != 1:
            raise ValueError(
                "ResidualMLP: expected an input and widths that are all equal, since each block "
                f"adds to its input, got size={size}, widths={tuple(widths)}; "
                "for example, widths=(256,) * 5."
            )
        width, depth = widths[0], len(widths)
        self.shape = (depth, width)
        self.activation = activation
        modulation = partial(
            Modulation,
            embedding_size=embedding_size,
            shape=self.shape,
            activation=activation,
            rngs=rngs,
        )
        context = partial(dense, context_size, width, bias=False, rngs=rngs)
        shrunk = partial(_shrunk, depth=depth)
        self.input = dense(size, width, rngs=rngs)
        self.context = context() if context_size else None
        self.time_modulation = modulation(1 + 2 * len(_FREQUENCIES))
        self.context_modulation = modulation(context_size) if context_size else None
        self.blocks = stack([dense(width, width, kernel_init=shrunk, rngs=rngs) for _ in widths])
        self.output = dense(width, out_size, kernel_init=zeros, rngs=rngs)

    def condition(self, context: Array) -> Conditioning:
        """What the context contributes.

        :param context: shape ``(*batch, context_size)``.
        """
        if self.context is None or self.context_modulation is None:
            depth, width = self.shape
            batch = (1,) * (context.ndim - 1)
            shapes = (*batch, width), (depth, *batch, 2, width)
            return Conditioning(*(jnp.zeros(shape, context.dtype) for shape in shapes))
        return Conditioning(self.context(context), self.context_modulation(context))

    def __call__(self, x: Array, time: Array, conditioning: Conditioning) -> Array:
        """Outputs, shape ``(*batch, out_size)``.

        :param x: inputs, shape ``(*batch, size)``.
        :param time: a coordinate of order one to ten that grows with time, shape ``(*batch,)``.
        :param conditioning: from :meth:`condition`. Batch axes broadcast.
        """
        graphdef, blocks = nnx.split(self.blocks)

        def add(h: Array, block: tuple[nnx.State, Array, Array]) -> tuple[Array, None]:
            state, by_time, by_context = block
            scale, shift = jnp.moveaxis(by_time + by_context, -2, 0)
            return h + nnx.merge(graphdef, state)(self.activation((1 + scale) * h + shift)), None

        h = self.input(x) + conditioning.hidden
        batch = jnp.broadcast_shapes(h.shape[:-1], time.shape)
        h = jnp.broadcast_to(h, (*batch, h.shape[-1]))
        modulation = self.time_modulation(_features(time))
        h, _ = lax.scan(add, h, (blocks, modulation, conditioning.modulation))
        return self.output(self.activation(h))


def _features(time: Array) -> Array:
    """Smooth features of order one, shape ``(*batch, 17)``."""
    angles = time[..., None] * jnp.asarray(_FREQUENCIES, time.dtype)
    return jnp.concatenate([time[..., None] / 4, jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _shrunk(rng_key: Array, shape: tuple[int, ...], dtype: Any = None, *, depth: int) -> Array:
    """Kernels such that all blocks together add about as much variance as their input has."""
    return he_normal(rng_key, shape, dtype) / depth**0.5
