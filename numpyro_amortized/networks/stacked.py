# SPDX-License-Identifier: Apache-2.0
"""Equal layers in one program, whose compile time does not grow with their number."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax import Array, lax


def scan_layers(function: Callable[[Any, Array], Array], layers: nnx.Module, x: Array) -> Array:
    """Apply stacked layers in turn.

    :param function: ``(layer, x) -> x``.
    :param layers: the layers, by :func:`~numpyro_amortized.networks.coupling_flow.stack`.
    :param x: input of the first layer, of the shape and type of all outputs.
    :return: output of the last layer.
    """
    graphdef, state = nnx.split(layers)

    def step(x: Array, layer: nnx.State) -> tuple[Array, None]:
        return function(nnx.merge(graphdef, layer), x), None

    return lax.scan(step, x, state)[0]
