# SPDX-License-Identifier: Apache-2.0
"""What every simulator offers: batches of joint draws, reproducible from one key."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from operator import index

import jax
import jax.numpy as jnp
from jax import Array, random

__all__ = ["Simulator", "TraceableSimulator"]


class Simulator(ABC):
    """A source of joint draws. A simulator of your own needs :meth:`sample` alone."""

    @abstractmethod
    def sample(
        self, rng_key: Array, batch_shape: int | tuple[int, ...], *, workers: int | None = None
    ) -> dict[str, Array]:
        """
        Draws a batch of simulations. Equal keys give equal batches, whatever ``workers`` is.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :param batch_shape: number of simulations, or their shape; all sizes at least 1.
        :param workers: number of worker processes, for simulators that run on the host.
        :return: name to values of shape ``(*batch_shape, *shape)``.
        :raises TypeError: if ``rng_key`` is not a key, or a size is not an integer.
        :raises ValueError: if a size is less than 1.
        """


class TraceableSimulator(Simulator):
    """A simulator that JAX can trace: it runs vectorized, on the device and in training loops."""

    @abstractmethod
    def simulate(self, rng_key: Array) -> dict[str, Array]:
        """
        Draws once. Pure and traceable.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :return: name to value, of its own shape.
        """

    def sample(
        self, rng_key: Array, batch_shape: int | tuple[int, ...], *, workers: int | None = None
    ) -> dict[str, Array]:
        """
        Draws a batch of simulations. Equal keys give equal batches; a batch size compiles once.

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :param batch_shape: number of simulations, or their shape; all sizes at least 1.
        :param workers: ignored, since the device draws.
        :return: name to values of shape ``(*batch_shape, *shape)``.
        :raises TypeError: if ``rng_key`` is not a key, or a size is not an integer.
        :raises ValueError: if a size is less than 1.
        """
        shape = check_shape(batch_shape)
        draws = self._simulate_batch(random.split(typed_key(rng_key), math.prod(shape)))
        return {name: jnp.reshape(x, shape + x.shape[1:]) for name, x in draws.items()}

    @cached_property
    def _simulate_batch(self) -> Callable[[Array], dict[str, Array]]:
        return jax.jit(jax.vmap(self.simulate))


def typed_key(rng_key: Array) -> Array:
    """
    :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
    :return: the same key, typed.
    :raises TypeError: for anything else.
    """
    dtype = getattr(rng_key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and rng_key.shape == ():
        return rng_key
    if dtype == jnp.uint32 and rng_key.ndim == 1:
        return random.wrap_key_data(rng_key)
    raise TypeError(f"rng_key: expected one key, such as jax.random.key(0), got {rng_key!r}")


def check_shape(batch_shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """
    :param batch_shape: number of simulations, or their shape.
    :return: the shape.
    :raises TypeError: if a size is not an integer.
    :raises ValueError: if a size is less than 1.
    """
    sizes = batch_shape if isinstance(batch_shape, tuple) else (batch_shape,)
    try:
        shape = tuple(map(index, sizes))
    except TypeError:
        raise TypeError(
            f"batch_shape: expected an integer or a tuple of them, got {batch_shape!r}"
        ) from None
    if any(size < 1 for size in shape):
        raise ValueError(f"batch_shape: expected sizes of at least 1, got {batch_shape!r}")
    return shape
