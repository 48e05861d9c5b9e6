# SPDX-License-Identifier: Apache-2.0
"""Multilayer perceptron."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from numpyro_amortized.initializers import he_normal, zeros


def dense(
    in_size: int,
    out_size: int,
    *,
    kernel_init: Callable[..., Array] = he_normal,
    bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer at full precision: TPUs would otherwise multiply in bfloat16."""
    return nnx.Linear(
        in_size,
        out_size,
        use_bias=bias,
        kernel_init=kernel_init,
        bias_init=zeros,
        precision=lax.Precision.HIGHEST,
        rngs=rngs,
    )


def sigmoid(x: Array) -> Array:
    """The logistic function by the hyperbolic tangent, which vectorizes where it does not."""
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


def swish(x: Array) -> Array:
    """``x sigmoid(x)``."""
    return x * sigmoid(x)


class MLP(nnx.Module):
    """Multilayer perceptron of an input and, optionally, a context.

    The context enters the first layer by a matrix of its own, so that a context shared by many
    inputs is multiplied once.

    :param size: length of the input; may be 0 where there is a context.
    :param out_size: length of the output.
    :param widths: widths of the hidden layers.
    :param context_size: length of the context, 0 for none.
    :param activation: applied after every hidden layer.
    :param zero_init: whether the last layer starts at zero, so that the output does.
    :param linear_path: whether a linear map of input and context, at first zero, is added.
    :param rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        size: int,
        out_size: int,
        *,
        widths: Sequence[int] = (128, 128),
        context_size: int = 0,
        activation: Callable[[Array], Array] = swish,
        zero_init: bool = False,
        linear_path: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        if size + context_size == 0 or not widths:
            raise ValueError(
                "MLP: expected an input or a context and at least one hidden layer, got "
                f"size={size}, context_size={context_size}, widths={tuple(widths)}."
            )
        self.activation = activation
        self.out_size = out_size
        # the linear path from inputs to outputs starts at zero; one product serves both paths
        first = partial(
            dense,
            out_size=widths[0] + linear_path * out_size,
            kernel_init=partial(he_normal, zero_columns=linear_path * out_size),
            rngs=rngs,
        )
        self.input = first(size) if size else None
        self.context = first(context_size, bias=size == 0) if context_size else None
        self.hidden = nnx.List(
            dense(fan_in, fan_out, rngs=rngs) for fan_in, fan_out in pairwise(widths)
        )
        output_init = zeros if zero_init else he_normal
        self.output = dense(widths[-1], out_size, kernel_init=output_init, rngs=rngs)
        self.linear_path = linear_path

    def __call__(self, x: Array | None, context: Array | None = None) -> Array:
        """Outputs, shape ``(*batch, out_size)``, of inputs ``(*batch, size)``.

        :param x: inputs, ``None`` where ``size`` is 0.
        :param context: contexts, shape ``(*batch, context_size)``, batch axes broadcast.
        """
        pairs = ((self.input, x), (self.context, context))
        parts = [layer(value) for layer, value in pairs if layer is not None and value is not None]
        h = sum(parts[1:], start=parts[0])
        if not self.linear_path:
            return self._perceptron(h)
        h, linear = jnp.split(h, [h.shape[-1] - self.out_size], axis=-1)
        return self._perceptron(h) + linear

    def _perceptron(self, h: Array) -> Array:
        h = self.activation(h)
        for layer in self.hidden:
            h = self.activation(layer(h))
        return self.output(h)
