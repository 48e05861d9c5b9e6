# SPDX-License-Identifier: Apache-2.0
"""Vectors that stand for points in time."""

from typing import Protocol, final

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from numpyro_amortized.initializers import host_generator, on_device


class TimeEmbedding(Protocol):
    """Maps times, shape ``(*batch, steps)``, to vectors, shape ``(*batch, steps, size)``."""

    size: int

    def __call__(self, times: Array) -> Array: ...


@final
class Sinusoidal(nnx.Module):
    """Sines and cosines of fixed frequencies [1].

    :param size: length of a vector, even.
    :param periods: the shortest and the longest, in units of the times; the others lie between
        them in equal ratios.
    :param rngs: not used.
    :raises ValueError: where the size is odd.

    **References**

    1. *Attention Is All You Need*, Vaswani et al. (2017).
    """

    def __init__(
        self, size: int = 16, *, periods: tuple[float, float] = (4, 1000), rngs: nnx.Rngs
    ) -> None:
        if size < 2 or size % 2:
            raise ValueError(f"Sinusoidal: expected an even size of at least 2, got {size}.")
        self.size = size
        self.periods = periods

    def __call__(self, times: Array) -> Array:
        frequencies = jnp.asarray(_frequencies(self.size // 2, self.periods), times.dtype)
        angles = times[..., None] * frequencies
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@final
class Time2Vec(nnx.Module):
    """A linear function of time, and sines of learned frequencies and phases [1].

    :param size: length of a vector, at least 2.
    :param periods: the initial ones lie between these two, in units of the times.
    :param rngs: random streams of the initial phases.
    :raises ValueError: where the size is below 2.

    **References**

    1. *Time2Vec: Learning a Vector Representation of Time*, Kazemi et al. (2019), eq. 1.
    """

    def __init__(
        self, size: int = 16, *, periods: tuple[float, float] = (4, 1000), rngs: nnx.Rngs
    ) -> None:
        if size < 2:
            raise ValueError(f"Time2Vec: expected a size of at least 2, got {size}.")
        self.size = size
        frequencies = np.append(1 / max(periods), _frequencies(size - 1, periods))
        phases = host_generator(rngs.params()).uniform(0, 2 * np.pi, size)
        phases[0] = 0
        self.frequencies = nnx.Param(on_device(frequencies, np.float32))
        self.phases = nnx.Param(on_device(phases, np.float32))

    def __call__(self, times: Array) -> Array:
        frequencies, phases = self.frequencies[...], self.phases[...]
        angles = times[..., None] * frequencies.astype(times.dtype) + phases.astype(times.dtype)
        return jnp.concatenate([angles[..., :1], jnp.sin(angles[..., 1:])], axis=-1)


def _frequencies(size: int, periods: tuple[float, float]) -> np.ndarray:
    """Angular frequencies, shape ``(size,)``."""
    return 2 * np.pi / np.geomspace(*periods, size)
