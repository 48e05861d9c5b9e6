# SPDX-License-Identifier: Apache-2.0
"""Gated recurrent units."""

from collections.abc import Callable
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from numpyro_amortized.initializers import host_generator, on_device
from numpyro_amortized.networks.convolution import ConvolutionLayer
from numpyro_amortized.networks.masks import fill, log_count
from numpyro_amortized.networks.mlp import MLP, dense, sigmoid, swish
from numpyro_amortized.networks.stacked import stack


class GRULayer(nnx.Module):
    """A state that every step updates, from zeros; masked steps leave it as it is [1].

    :param size: number of features of a step.
    :param width: length of the state.
    :param rngs: random streams of the initial parameters.

    **References**

    1. *Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
       Translation*, Cho et al. (2014).
    """

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.width = width
        self.input = dense(size, 3 * width, rngs=rngs)
        self.recurrent = dense(width, 3 * width, kernel_init=_orthogonal, bias=False, rngs=rngs)

    def __call__(self, x: Array, mask: Array) -> Array:
        """States after each step, shape ``(steps, *batch, width)``.

        :param x: steps first, shape ``(steps, *batch, size)``.
        :param mask: shape ``(steps, *batch)``.
        """
        inputs = self.input(x)  # of all steps at once

        def step(state: Array, args: tuple[Array, Array]) -> tuple[Array, Array]:
            given, keep = args
            state = jnp.where(keep[..., None], self._update(state, given), state)
            return state, state

        state = jnp.zeros((*x.shape[1:-1], self.width), inputs.dtype)
        return lax.scan(step, state, (inputs, mask))[1]

    def _update(self, state: Array, given: Array) -> Array:
        gates, candidate = jnp.split(given, [2 * self.width], axis=-1)
        from_gates, from_state = jnp.split(self.recurrent(state), [2 * self.width], axis=-1)
        reset, update = jnp.split(sigmoid(gates + from_gates), 2, axis=-1)
        candidate = jnp.tanh(candidate + reset * from_state)
        return candidate + update * (state - candidate)


@final
class GRU(nnx.Module):
    """Summary of a time series, read step by step.

    A gated recurrent unit reads the series; its last state, its mean state and the logarithm of
    the number of steps are mapped to the summary.

    :param size: number of features of a step.
    :param summary_size: length of the summary.
    :param width: length of the state.
    :param kernel_size: number of neighbouring steps, odd, that a convolution shows the unit at each
        step. With 1 it sees the steps as they are. What neighbours have to do with each other is
        learnt sooner with more.
    :param bidirectional: whether a second unit reads the series from its end.
    :param activation: that of the perceptron.
    :param rngs: random streams of the initial parameters.

    >>> network = GRU(2, 8, width=16, rngs=nnx.Rngs(0))
    >>> network(jnp.ones((5, 100, 2))).shape
    (5, 8)
    """

    def __init__(
        self,
        size: int,
        summary_size: int = 32,
        *,
        width: int = 64,
        kernel_size: int = 1,
        bidirectional: bool = False,
        activation: Callable[[Array], Array] = swish,
        rngs: nnx.Rngs,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}.")
        self.summary_size = summary_size
        self.activation = activation
        stem = partial(ConvolutionLayer, kernel_size=kernel_size, num_spatial_dims=1, rngs=rngs)
        self.stem = stem(size, width // 2) if kernel_size > 1 else None
        size = width // 2 if kernel_size > 1 else size
        self.num_directions = 1 + bidirectional
        self.layers = stack([GRULayer(size, width, rngs=rngs) for _ in range(self.num_directions)])
        self.summarize = MLP(
            2 * self.num_directions * width + 1,
            summary_size,
            widths=(width,),
            activation=activation,
            rngs=rngs,
        )

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Summaries, shape ``(*batch, summary_size)``.

        :param x: series, shape ``(*batch, steps, size)``.
        :param mask: booleans, shape ``(*batch, steps)``; steps where it is false are left out,
            whatever their values.
        """
        x, mask = fill(x, mask)
        count = log_count(x, mask)
        if self.stem is not None:
            x = self.activation(self.stem(x))
        states, seen = self._states(jnp.moveaxis(x, -2, 0), jnp.moveaxis(mask, -1, 0))
        mean = jnp.sum(states * seen, axis=1) / jnp.maximum(jnp.sum(seen, axis=1), 1)
        parts = [*states[:, -1], *mean, count]
        return self.summarize(jnp.concatenate(parts, axis=-1))

    def _states(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """States, shape ``(directions, steps, *batch, width)``, and which steps made them."""
        ways = [slice(None), slice(None, None, -1)][: self.num_directions]
        series, masks = jnp.stack([x[way] for way in ways]), jnp.stack([mask[way] for way in ways])
        graphdef, state = nnx.split(self.layers)
        states = jax.vmap(lambda *args: nnx.merge(graphdef, args[0])(*args[1:]))(
            state, series, masks
        )
        return states, masks[..., None]


def _orthogonal(rng_key: Array, shape: tuple[int, int], dtype: Any = None) -> Array:
    """Orthogonal blocks side by side, which keep the norm of a state over many steps."""
    width = shape[0]
    draws = host_generator(rng_key).standard_normal((shape[1] // width, width, width))
    blocks, _ = np.linalg.qr(draws)
    return on_device(np.concatenate(blocks, axis=1), dtype)
