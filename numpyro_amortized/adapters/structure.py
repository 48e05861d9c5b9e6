# SPDX-License-Identifier: Apache-2.0
"""Bijections that rename entries and reshape them."""

from dataclasses import dataclass
from typing import final

import jax.numpy as jnp
from jax import Array

from numpyro_amortized.adapters.base import Bijection, Data
from numpyro_amortized.adapters.entries import with_entry, without
from numpyro_amortized.adapters.entrywise import EntrywiseBijection


@final
@dataclass(frozen=True)
class Rename(Bijection):
    """Give an entry another name."""

    old: str
    new: str

    @property
    def names(self) -> tuple[str, ...]:
        """The entry that the step reads."""
        return (self.old,)

    def forward(self, data: Data) -> dict[str, Array]:
        return _renamed(data, self.old, self.new)

    def inverse(self, data: Data) -> dict[str, Array]:
        return _renamed(data, self.new, self.old)

    def log_det_jac(self, data: Data) -> Array:
        return jnp.zeros(())

    def describe(self) -> list[str]:
        return [f"{self.old}: renamed to {self.new}"]


def _renamed(data: Data, old: str, new: str) -> dict[str, Array]:
    return with_entry(without(data, [old]), new, data[old]) if old in data else dict(data)


@final
@dataclass(frozen=True)
class ExpandDims(EntrywiseBijection):
    """Insert axes of length one; :param axis: their places in the result."""

    axis: int | tuple[int, ...]

    def forward_entry(self, x: Array) -> Array:
        return jnp.expand_dims(x, self.axis)

    def inverse_entry(self, z: Array) -> Array:
        return jnp.squeeze(z, self.axis)

    def log_det_entry(self, x: Array) -> Array:
        return jnp.zeros(())

    @property
    def label(self) -> str:
        return f"axes of length one inserted at {self.axis}"


@final
@dataclass(frozen=True)
class Squeeze(EntrywiseBijection):
    """Remove axes of length one; :param axis: their places in the value."""

    axis: int | tuple[int, ...]

    def forward_entry(self, x: Array) -> Array:
        return jnp.squeeze(x, self.axis)

    def inverse_entry(self, z: Array) -> Array:
        return jnp.expand_dims(z, self.axis)

    def log_det_entry(self, x: Array) -> Array:
        return jnp.zeros(())

    @property
    def label(self) -> str:
        return f"axes of length one removed at {self.axis}"


@final
@dataclass(frozen=True)
class ToArray(EntrywiseBijection):
    """Numbers and nested lists become arrays; the adapter has seen to that before any step."""

    def forward_entry(self, x: Array) -> Array:
        return jnp.asarray(x)

    def inverse_entry(self, z: Array) -> Array:
        return z

    def log_det_entry(self, x: Array) -> Array:
        return jnp.zeros(())

    @property
    def label(self) -> str:
        return "arrays"
