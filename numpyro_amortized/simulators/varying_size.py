# SPDX-License-Identifier: Apache-2.0
"""Simulations of varying size in programs of constant shapes."""

from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.simulators.arguments import Arguments, is_array
from numpyro_amortized.simulators.sizes import changed_axes
from numpyro_amortized.simulators.tracing import Site

__all__ = ["VaryingSize", "check_sizes", "crop_axes", "find_varying_size", "pad_axes", "resized"]

_NUM_EXACT = 8  # programs, where every size needs its own
_TOLERANCE = 1e-4  # of a log density: rounding of float32

Axes = Mapping[str, tuple[int, ...]]


class VaryingSize(NamedTuple):
    """
    The size that varies from simulation to simulation.

    Where the first ``n`` members of a simulation of full size are distributed as a simulation of
    size ``n``, every simulation has the full size and what is beyond ``n`` is masked: ``lengths``
    is the full size alone. Otherwise each of ``lengths`` is simulated as it is, and padded.
    """

    name: str
    low: int
    high: int
    lengths: tuple[int, ...]
    axes: Axes  # site to the axes that have this size

    @property
    def is_padded(self) -> bool:
        """Whether simulations of the full size serve for all sizes."""
        return self.lengths == (self.high,)

    def describe(self) -> str:
        """What varies, and how it is simulated."""
        between = f"{self.name}: varies from {self.low} to {self.high}"
        if self.is_padded:
            return f"{between}; simulated at {self.high}, members beyond it are masked"
        return (
            f"{between}; the first members of a larger simulation are not distributed as a smaller "
            f"one, so the sizes {list(self.lengths)} are simulated one by one, and padded"
        )


def exact_lengths(low: int, high: int) -> tuple[int, ...]:
    """:return: a few sizes from the least to the greatest, in about equal ratios."""
    return tuple(np.unique(np.round(np.geomspace(low, high, _NUM_EXACT)).astype(int)).tolist())


def check_sizes(sizes: Mapping[str, tuple[int, int]]) -> tuple[str, int, int]:
    """
    :param sizes: name of a plate, or of the argument that sets its size, to least and greatest.
    :return: name, least and greatest size.
    :raises TypeError: if it is no mapping of a name to two integers.
    :raises ValueError: if there is more than one name, or no range.
    """
    if not isinstance(sizes, Mapping) or not all(isinstance(s, tuple) for s in sizes.values()):
        raise TypeError(f'sizes: expected a mapping such as {{"n": (5, 200)}}, got {sizes!r}.')
    if len(sizes) != 1:
        raise ValueError(
            f"sizes: expected one size that varies, got {list(sizes)}. Draw others as arguments of "
            "the model that mask what is beyond them: context=."
        )
    [(name, bounds)] = sizes.items()
    try:
        low, high = map(index, bounds)
    except (TypeError, ValueError):
        raise TypeError(
            f"sizes: '{name}': expected two integers, least and greatest, got {bounds!r}."
        ) from None
    if not 1 <= low < high:
        raise ValueError(f"sizes: '{name}': expected 1 <= least < greatest, got {bounds!r}.")
    return name, low, high


def crop_axes(values: Mapping[str, Array], axes: Axes, size: int) -> dict[str, Array]:
    """:return: the values with only the first members of the axes given."""
    return {
        name: x[tuple(slice(size if k in axes.get(name, ()) else None) for k in range(jnp.ndim(x)))]
        for name, x in values.items()
    }


def pad_axes(values: Mapping[str, Array], axes: Axes, size: int) -> dict[str, Array]:
    """:return: the values with the axes given extended to a size, by repetition."""

    def pad(name: str, x: Array) -> Array:
        own = axes.get(name, ())
        extra = [(0, max(0, size - n) if k in own else 0) for k, n in enumerate(x.shape)]
        return jnp.pad(x, extra, mode="wrap") if own else x

    return {name: pad(name, jnp.asarray(x)) for name, x in values.items()}


def resized(
    arguments: Arguments, data: Sequence[int], before: int, size: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    The arguments of a model for another number of data.

    :param arguments: the model's arguments.
    :param data: indices of the leaves that hold data.
    :param before: size of the plate with the arguments as they are.
    :param size: the size wanted.
    :return: arguments and keyword arguments.
    :raises ValueError: if there are no data, or other arguments have their length.
    """
    if not data:
        raise ValueError(
            "sizes: the plate's size is not that of data passed to the model. Make it an argument "
            "of the model, and name that."
        )
    sized = [i for i, x in enumerate(arguments.leaves) if is_array(x) and before in np.shape(x)]
    if others := [arguments.labels[i] for i in sized if i not in data]:
        raise ValueError(
            f"sizes: {others} has the length of the plate, but is no data: it is not known for "
            "other sizes. Draw it for every simulation: context=."
        )
    changes: dict[int, Any] = {i: _repeated(arguments.leaves[i], before, size) for i in sized}
    changes |= {i: size for i, x in enumerate(arguments.leaves) if type(x) is int and x == before}
    return arguments.changed(changes)


def _repeated(x: Any, before: int, size: int) -> Any:
    axis = np.shape(x).index(before)
    return np.take(np.asarray(x), np.arange(size) % before, axis=axis)


TraceAt = Callable[[Axes, int, Array, Mapping[str, Array]], Mapping[str, dict[str, Any]]]


def find_varying_size(
    bounds: tuple[str, int, int], sites: Mapping[str, Site], trace_at: TraceAt
) -> VaryingSize:
    """
    Finds the axes that vary, and whether one simulation of full size serves for all sizes.

    :param bounds: name, least and greatest size.
    :param sites: of the model, at the greatest size, and of its context.
    :param trace_at: axes, size, key and values to a trace.
    :raises ValueError: if nothing varies with the size.
    """
    name, low, high = bounds
    if name in sites:
        raise ValueError(f"sizes: '{name}' is also the name of a site; rename the site.")
    context = {n: s.shape for n, s in sites.items() if s.role == "context"}
    context_axes = {n: (k.index(high),) for n, k in context.items() if high in k}
    own = [n for n in sites if n not in context]
    drawn = [s.name for s in sites.values() if s.role in ("latent", "observed")]

    def shapes(size: int) -> dict[str, tuple[int, ...]]:
        trace = jax.eval_shape(
            lambda: {
                n: jnp.asarray(site["value"])
                for n, site in trace_at(context_axes, size, random.key(0), {}).items()
                if n in own
            }
        )
        return {n: x.shape for n, x in trace.items()}

    axes = context_axes | changed_axes(shapes(high), shapes(low))
    if not any(n in axes for n in drawn):
        raise ValueError(f"sizes: '{name}' changes the shape of no random site of the model.")
    fits = _prefixes_agree(drawn, axes, (low, high), trace_at)
    return VaryingSize(name, low, high, (high,) if fits else exact_lengths(low, high), axes)


def _prefixes_agree(
    names: Sequence[str], axes: Axes, sizes: tuple[int, int], trace_at: TraceAt
) -> bool:
    """Whether the first members of a larger simulation are distributed as a smaller one."""
    low, high = sizes
    key = random.key(22)
    full = trace_at(axes, high, key, {})
    values = {name: full[name]["value"] for name in names}
    part = trace_at(axes, low, key, crop_axes(values, axes, low))
    pairs = ((trace[n]["fn"].log_prob(trace[n]["value"]) for trace in (full, part)) for n in names)
    return all(_is_prefix(np.asarray(large), np.asarray(small)) for large, small in pairs)


def _is_prefix(large: np.ndarray, small: np.ndarray) -> bool:
    if large.ndim != small.ndim:
        return False
    prefix = large[tuple(map(slice, small.shape))]
    return prefix.shape == small.shape and bool(
        np.all(np.abs(prefix - small) <= _TOLERANCE * (1 + np.abs(small)))
    )
