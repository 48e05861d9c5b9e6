# SPDX-License-Identifier: Apache-2.0
"""What every simulator offers: batches of joint draws, reproducible from one key."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from numpyro_amortized.simulators.rejection import accepted_draws, check_count

if TYPE_CHECKING:
    from os import PathLike

    from numpyro_amortized.disk import DiskDataset

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

    def to_disk(
        self,
        rng_key: Array,
        num_simulations: int,
        path: "str | PathLike[str]",
        *,
        chunk_size: int | None = None,
        workers: int | None = None,
        progress_bar: bool = True,
    ) -> "DiskDataset":
        """
        Simulates a bank that may be larger than memory; see :func:`numpyro_amortized.disk.to_disk`.
        """
        from numpyro_amortized.disk import to_disk

        return to_disk(
            self,
            rng_key,
            num_simulations,
            path,
            chunk_size=chunk_size,
            workers=workers,
            progress_bar=progress_bar,
        )

    def rejection_sample(
        self,
        rng_key: Array,
        batch_shape: int | tuple[int, ...],
        predicate: Callable[[dict[str, Array]], Array | np.ndarray],
        *,
        sample_size: int | None = None,
        max_rounds: int = 1000,
        exact: bool = False,
    ) -> dict[str, Array]:
        """
        Draws simulations that a predicate accepts, in rounds: at least as many as asked for.

        **Example**

        .. doctest::

            >>> from jax import random
            >>> from numpyro_amortized.simulators.functions import LambdaSimulator
            >>> normal = LambdaSimulator(lambda rng_key: {"x": random.normal(rng_key)})
            >>> positive = lambda draws: draws["x"] > 0
            >>> draws = normal.rejection_sample(random.key(0), 100, positive, exact=True)
            >>> draws["x"].shape, bool(draws["x"].min() > 0)
            ((100,), True)

        :param rng_key: a typed key, or a raw one of shape ``(2,)`` and dtype ``uint32``.
        :param batch_shape: number of simulations, or their shape; all sizes at least 1.
        :param predicate: the simulations of a round, name to values ``(sample_size, *shape)`` on
            the device, to which of them are accepted, booleans of shape ``(sample_size,)``.
        :param sample_size: number of simulations in a round; as many as asked for by default.
        :param max_rounds: the greatest number of rounds.
        :param exact: whether to return no more simulations than asked for.
        :return: name to values of shape ``(*batch_shape, *shape)``, where without ``exact`` the
            first size may be greater.
        :raises RuntimeError: if too few are accepted, with the rate of acceptance.
        :raises TypeError: if the predicate returns no booleans, or a size is not an integer.
        :raises ValueError: if it returns another shape, or a size is less than 1.
        """
        shape, max_rounds = check_shape(batch_shape), check_count("max_rounds", max_rounds)
        num_draws = math.prod(shape)
        size = num_draws if sample_size is None else check_count("sample_size", sample_size)
        rows, num_accepted = accepted_draws(
            lambda key: self.sample(key, size),
            typed_key(rng_key),
            predicate,
            num_draws=num_draws,
            sample_size=size,
            max_rounds=max_rounds,
        )
        if not exact and shape:
            shape = (num_accepted // math.prod(shape[1:]), *shape[1:])
        num_draws = math.prod(shape)
        return {n: jnp.reshape(x[:num_draws], shape + x.shape[1:]) for n, x in rows.items()}


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
        draws = self._simulate_batch(typed_key(rng_key), math.prod(shape))
        return {name: jnp.reshape(x, shape + x.shape[1:]) for name, x in draws.items()}

    @cached_property
    def _simulate_batch(self) -> Callable[[Array, int], dict[str, Array]]:
        def simulate(rng_key: Array, num_draws: int) -> dict[str, Array]:
            return jax.vmap(self.simulate)(random.split(rng_key, num_draws))

        return jax.jit(simulate, static_argnums=1)


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
    is_array = dtype is not None and hasattr(rng_key, "shape")
    got = f"an array of type {dtype} and shape {rng_key.shape}" if is_array else repr(rng_key)
    raise TypeError(f"rng_key: expected one key, such as jax.random.key(0), got {got}.")


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
            f"batch_shape: expected an integer or a tuple of them, got {batch_shape!r}."
        ) from None
    if any(size < 1 for size in shape):
        raise ValueError(f"batch_shape: expected sizes of at least 1, got {batch_shape!r}.")
    return shape
