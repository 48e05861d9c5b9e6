# SPDX-License-Identifier: Apache-2.0
"""Equal layers in one program, whose compile time does not grow with their number."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import lax


def stack(modules: Sequence[nnx.Module]) -> nnx.Module:
    """One module whose variables are those of equal modules along a new first axis."""
    graphdef = nnx.split(modules[0])[0]
    states = [nnx.split(module)[1] for module in modules]
    stacked = jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *states)
    return nnx.merge(graphdef, stacked)


def scan_layers[T](
    function: Callable[[Any, T], T], layers: nnx.Module, x: T, *, reverse: bool = False
) -> T:
    """Apply stacked layers in turn.

    :param function: ``(layer, x) -> x``.
    :param layers: the layers, by :func:`stack`.
    :param x: input of the first layer, arrays of the shapes and types of all outputs.
    :param reverse: whether the last layer comes first.
    :return: output of the last layer to be applied.
    """
    graphdef, state = nnx.split(layers)

    def step(x: T, layer: nnx.State) -> tuple[T, None]:
        return function(nnx.merge(graphdef, layer), x), None

    return lax.scan(step, x, state, reverse=reverse)[0]
