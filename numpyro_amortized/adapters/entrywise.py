# SPDX-License-Identifier: Apache-2.0
"""Steps that map each of their entries on its own."""

from abc import abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from numpyro_amortized.adapters.base import Bijection, Data, Transform


@dataclass(frozen=True)
class EntrywiseMap(Transform):
    """A map of each of its entries, one-way unless it is an :class:`EntrywiseBijection`.

    :param names: the entries.
    """

    names: tuple[str, ...]

    @abstractmethod
    def forward_entry(self, x: Array) -> Array:
        """Map the value of one entry."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What is done to each entry."""

    def forward(self, data: Data) -> dict[str, Array]:
        return {n: self.forward_entry(x) if n in self.names else x for n, x in data.items()}

    def describe(self) -> list[str]:
        return [f"{', '.join(self.names) or 'no entry'}: {self.label}"]


@dataclass(frozen=True)
class EntrywiseBijection(EntrywiseMap, Bijection):
    """A bijection of each of its entries.

    :param names: the entries.
    """

    @abstractmethod
    def inverse_entry(self, z: Array) -> Array:
        """Undo :meth:`forward_entry`."""

    @abstractmethod
    def log_det_entry(self, x: Array) -> Array:
        """Log absolute determinant of the Jacobian of :meth:`forward_entry`, a scalar."""

    def inverse(self, data: Data) -> dict[str, Array]:
        return {n: self.inverse_entry(z) if n in self.names else z for n, z in data.items()}

    def log_det_jac(self, data: Data) -> Array:
        return sum((self.log_det_entry(data[n]) for n in self.names if n in data), jnp.zeros(()))


def as_float(x: Array) -> Array:
    """Integers and booleans as numbers of the default precision."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))


def constant_like(value: ArrayLike, x: Array, what: str) -> Array:
    """A constant that broadcasts against a value, in the value's precision.

    :raises ValueError: where the result would not have the value's shape.
    """
    constant = jnp.asarray(value, x.dtype)
    try:
        fits = jnp.broadcast_shapes(constant.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"Adapter: {what}: expected a shape that broadcasts to that of one value, {x.shape}, "
            f"got {constant.shape}. Leading batch axes are not part of a value."
        )
    return constant


def summed(log_slope: Array, x: Array) -> Array:
    """Log-determinant of an elementwise map, a scalar."""
    return jnp.sum(jnp.broadcast_to(log_slope, x.shape))
