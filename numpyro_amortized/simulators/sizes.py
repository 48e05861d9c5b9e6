# SPDX-License-Identifier: Apache-2.0
"""Which axes of a model's sites follow the number of its data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numpyro_amortized.simulators.arguments import Arguments, Run, is_array

__all__ = ["changed_axes", "data_sized"]


def data_sized(
    arguments: Arguments, data: Sequence[int], shapes: Run, sites: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """
    Finds the axes of sites that follow the number of data, by taking one datum away.

    :param arguments: the model's arguments.
    :param data: indices of the leaves that hold data.
    :param shapes: arguments to site name to shape.
    :param sites: site name to shape, for the arguments as they are.
    :return: site name to axes; empty where the model cannot be run with one datum less.
    """
    lengths = {np.shape(arguments.leaves[i])[0] for i in data if np.ndim(arguments.leaves[i])} - {1}
    arrays = {i: _shorter(x, lengths) for i, x in enumerate(arguments.leaves) if is_array(x)}
    counts = {i: x - 1 for i, x in enumerate(arguments.leaves) if type(x) is int and x in lengths}
    # A model that takes its size as an argument of its own runs only if that changes, too.
    for changes in (arrays, arrays | counts) if lengths else ():
        try:
            shorter = arguments.call(shapes, changes)
        except Exception:
            continue
        if axes := changed_axes(sites, shorter):
            return axes
    return {}


def changed_axes(
    before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """
    :param before: site name to shape.
    :param after: the same for other arguments.
    :return: site name to the axes whose lengths differ.
    """
    changed = {}
    for name, shape in before.items():
        new = after.get(name, shape)
        if len(new) == len(shape) and new != shape:
            changed[name] = tuple(k for k, size in enumerate(shape) if size != new[k])
    return changed


def _shorter(x: Any, lengths: set[int]) -> Any:
    return x[tuple(slice(n - 1 if n in lengths else n) for n in np.shape(x))] if np.ndim(x) else x
